"use strict";
// Sliders: without this, both pictures of a pair stand side by side.
(() => {
  document.documentElement.classList.add("js");
  // a pair, or a gallery with the slider of all its pairs
  const update = (pair) => {
    const range = pair.querySelector("input");
    pair.style.setProperty("--at", range.value + "%");
    const { left, right } = pair.dataset;
    range.setAttribute("aria-valuetext", `${range.value} % ${left}, ${100 - range.value} % ${right}`);
  };
  const set = (pair, value) => {
    pair.querySelector("input").value = value;
    update(pair);
  };
  for (const pair of document.querySelectorAll("[data-pair]")) {
    const frame = pair.querySelector(".frame");
    const follow = (event) => {
      const box = frame.getBoundingClientRect();
      set(pair, Math.round((100 * (event.clientX - box.left)) / box.width));
    };
    pair.querySelector("input").addEventListener("input", () => update(pair));
    frame.addEventListener("pointerdown", (event) => {
      frame.setPointerCapture(event.pointerId);
      follow(event);
    });
    frame.addEventListener("pointermove", (event) => {
      if (frame.hasPointerCapture(event.pointerId)) follow(event);
    });
    update(pair);
  }
  for (const gallery of document.querySelectorAll("[data-gallery]")) {
    const all = gallery.querySelector(".all input");
    update(gallery);
    all.addEventListener("input", () => {
      update(gallery);
      for (const pair of gallery.querySelectorAll("[data-pair]")) set(pair, all.value);
    });
  }
  // what is folded is printed too
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const details of folded) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of folded) details.open = false;
  });
})();
