"use strict";
// The gallery: filters all pictures, builds only those near the window, and hides flagged ones until they are asked for.
(() => {
  const ROWS = 6; // of pictures that are built together
  const MARGIN = 1500; // pixels above and below the window in which pictures are built
  const PRINTED = 60; // pictures on paper
  const SMALL = 160; // narrower pictures are enlarged pixel by pixel

  const data = JSON.parse(document.getElementById("gallery-data").textContent);
  const [wall, form, template] = ["gallery", "filters", "tile"].map((id) => document.getElementById(id));
  const [blocks, paper, status] = [".blocks", ".paper", ".count"].map((part) => wall.querySelector(part));
  const viewer = document.getElementById("viewer"); // not there if no pictures were kept
  const field = (name) => form.elements[name]; // undefined where there is nothing to choose
  const prompts = data.rows.map((row) => row[1].toLowerCase());
  const shown = new Set(); // flagged pictures that were asked for
  let order = data.pictures.map((_, i) => i); // the pictures that pass the filters
  let columns = 0;

  const element = (kind, text) => Object.assign(document.createElement(kind), { textContent: text ?? "" });
  const number = (n) => n.toLocaleString("en");
  const bare = (label) => label.slice(label.indexOf(":") + 1).trim();
  const pictures = data.pictures.map(([model, row, sample, seed, width, height, file, labels, scores, head, body]) => ({
    model, row, sample, seed, width, height, file, labels, scores,
    thumbnail: () => (body === undefined ? null : `data:image/jpeg;base64,${data.heads[head]}${body}`),
    flagged: labels.some((label) => data.labels[label][2]),
  }));
  const hidden = (i) => data.hide && pictures[i].flagged && !shown.has(i) && !field("show")?.checked;
  const flags = (picture) => picture.labels.filter((label) => data.labels[label][2]).map((label) => bare(data.labels[label][1]));

  // the picture, or what stands for it: what is hidden is never loaded
  const source = (i, whole) => {
    const { file, flagged, thumbnail } = pictures[i];
    if (hidden(i)) return thumbnail();
    return whole || (flagged && data.hide) ? file : (thumbnail() ?? file);
  };
  const paint = (image, i, whole, lost) => {
    const { width, height } = pictures[i];
    const from = source(i, whole);
    image.onerror = () => {
      const thumbnail = pictures[i].thumbnail();
      lost();
      if (thumbnail && image.src !== thumbnail) image.src = thumbnail;
    };
    image.classList.toggle("pixels", width < SMALL && !hidden(i));
    [image.width, image.height] = [width, height];
    if (from) image.src = from;
    else image.removeAttribute("src");
  };

  // labels as text, the flagged ones marked
  const found = (into, picture, name) => {
    into.replaceChildren();
    picture.labels.forEach((label, at) => {
      const score = picture.scores[at];
      const text = name(data.labels[label]) + (score == null ? "" : ` ${score.toFixed(2)}`);
      const part = element(data.labels[label][2] ? "b" : "span", text);
      into.append(at ? ", " : "", part);
    });
  };

  const name = (i) => {
    const { model, row, sample, seed } = pictures[i];
    const of = data.models.length > 1 ? ` of ${data.models[model]}` : "";
    return `case ${data.rows[row][0]}${sample ? `, picture ${sample}` : ""}${of}, seed ${seed}: ${data.rows[row][1]}`;
  };
  const dress = (tile, i) => {
    const picture = pictures[i];
    const view = tile.querySelector(".view");
    if (!view) return;
    const [veil, image] = [view.querySelector(".veil"), view.querySelector("img")];
    tile.classList.toggle("hidden", hidden(i));
    tile.classList.toggle("flagged", picture.flagged);
    tile.classList.remove("lost");
    veil.textContent = `flagged: ${flags(picture).join(", ")}`;
    view.setAttribute("aria-label", `${hidden(i) ? `Show the flagged picture (${flags(picture).join(", ")})` : "Open the picture"} of ${name(i)}`);
    paint(image, i, false, () => {
      veil.textContent = "The file is not beside this page.";
      tile.classList.add("lost");
    });
  };
  const build = (place) => {
    const i = order[place];
    const picture = pictures[i];
    const tile = template.content.firstElementChild.cloneNode(true);
    const [prompt, labels, seed] = [".prompt", ".found", ".seed"].map((part) => tile.querySelector(part));
    tile.dataset.place = place;
    tile.setAttribute("aria-posinset", place + 1);
    tile.setAttribute("aria-setsize", order.length);
    prompt.textContent = prompt.title = data.rows[picture.row][1];
    found(labels, picture, (label) => bare(label[1]));
    const of = data.models.length > 1 ? `${data.models[picture.model]} · ` : "";
    seed.textContent = `${of}${data.rows[picture.row][0]} · seed ${picture.seed}`;
    dress(tile, i);
    return tile;
  };

  // blocks of rows, each with its place and height from the start, are filled near the window and emptied elsewhere
  const range = (block) => {
    const size = columns * ROWS;
    const from = block.dataset.number * size;
    return Array.from({ length: Math.min(size, order.length - from) }, (_, k) => from + k);
  };
  const fill = (block) => {
    if (!block.firstChild) block.append(...range(block).map(build));
  };
  const empty = (block) => {
    if (!block.contains(document.activeElement)) block.replaceChildren();
  };
  const near = new IntersectionObserver(
    (entries) => entries.forEach((entry) => (entry.isIntersecting ? fill : empty)(entry.target)),
    { rootMargin: `${MARGIN}px 0px` },
  );
  const inPixels = (property) => {
    const [, value] = getComputedStyle(wall).getPropertyValue(property).match(/([\d.]+)rem/);
    return value * parseFloat(getComputedStyle(document.documentElement).fontSize);
  };
  const fitting = () => {
    const gap = inPixels("--gap");
    return Math.max(1, Math.floor((blocks.clientWidth + gap) / (inPixels("--least") + gap)));
  };
  const lay = () => {
    near.disconnect();
    columns = fitting();
    wall.style.setProperty("--columns", columns);
    const make = (number) => {
      const block = document.createElement("ul");
      block.className = "block";
      block.dataset.number = number;
      block.setAttribute("role", "list");
      return block;
    };
    const made = Array.from({ length: Math.ceil(order.length / (columns * ROWS)) }, (_, number) => make(number));
    blocks.replaceChildren(...made);
    if (made.length) fill(made[0]);
    measure();
    for (const block of made) near.observe(block);
  };
  // every block is as high as its rows, by one that is filled
  const measure = () => {
    const filled = [...blocks.children].find((block) => block.firstChild);
    if (!filled) return;
    filled.style.height = "";
    const row = filled.getBoundingClientRect().height / Math.ceil(range(filled).length / columns);
    for (const block of blocks.children) block.style.height = `${row * Math.ceil(range(block).length / columns)}px`;
  };

  const filter = () => {
    const text = field("prompt").value.trim().toLowerCase();
    const seed = field("seed").value.trim();
    const [model, label, flagged] = ["model", "label", "flagged"].map((key) => field(key)?.value || null);
    const least = field("score")?.value ? Number(field("score").value) : null;
    const score = (picture) => {
      const scores = label === null ? picture.scores : picture.scores.filter((_, at) => picture.labels[at] === Number(label));
      return Math.max(...scores.map((score) => score ?? -Infinity), -Infinity);
    };
    const passes = (picture) =>
      (model === null || picture.model === Number(model)) &&
      (label === null || picture.labels.includes(Number(label))) &&
      (flagged === null || picture.flagged === (flagged === "1")) &&
      (least === null || score(picture) >= least) &&
      (!seed || String(picture.seed) === seed) &&
      (!text || prompts[picture.row].includes(text));
    order = pictures.flatMap((picture, i) => (passes(picture) ? [i] : []));
    if (field("order")?.value) order.sort((a, b) => score(pictures[b]) - score(pictures[a]) || a - b);
    const all = pictures.length;
    status.textContent =
      order.length === all
        ? `${number(all)} pictures`
        : `${number(order.length)} of ${number(all)} pictures (${((100 * order.length) / all).toFixed(1)} %)`;
    const passed = columns > 0 && wall.getBoundingClientRect().top < 0;
    lay();
    // what is found begins below the filters, which stay at the top of a wide window
    if (passed) scrollBy({ top: wall.getBoundingClientRect().top - form.offsetHeight, behavior: "instant" });
  };

  // one picture, large: `i`, which stands at `open` among those that pass, or was asked for from there
  let [open, large] = [0, 0];
  const view = (i, place) => {
    [large, open] = [i, place];
    const picture = pictures[i];
    const part = (of) => viewer.querySelector(of);
    const [text, prompt, guidance] = data.rows[picture.row];
    part(".kicker").textContent = order[place] === i ? `${number(place + 1)} of ${number(order.length)}` : "not among those that are shown";
    part("h3").textContent = prompt;
    const facts = [
      ["model", data.models[picture.model]],
      ["case", picture.sample ? `${text}, picture ${picture.sample}` : text],
      ["seed", picture.seed],
      ["guidance", guidance],
      ["size", `${picture.width} × ${picture.height}`],
      ["labels", ""],
    ];
    part("dl").replaceChildren(...facts.flatMap(([term, value]) => [element("dt", term), element("dd", value)]));
    found(part("dd:last-child"), picture, (label) => label[1]);
    part("a").href = picture.file;
    const lost = part(".lost");
    lost.hidden = true;
    part(".stage img").alt = `${hidden(i) ? "Flagged, not shown" : "Picture"}: ${prompt}`;
    paint(part(".stage img"), i, true, () => (lost.hidden = false));
    part("[name=previous]").disabled = place === 0;
    part("[name=next]").disabled = place + 1 === order.length;
    part("[name=show]").hidden = !(data.hide && picture.flagged);
    part("[name=show]").textContent = hidden(i) ? "Show it" : "Hide it";
    // the same row by every model
    const same = pictures.flatMap((other, k) => (other.row === picture.row && other.sample === picture.sample ? [k] : []));
    const others = same.map((k) => {
      const [other, image] = [element("button"), element("img")];
      [other.type, other.disabled, image.alt] = ["button", k === i, ""];
      paint(image, k, false, () => {});
      other.append(image, data.models[pictures[k].model]);
      other.addEventListener("click", () => view(k, order.includes(k) ? order.indexOf(k) : open));
      return other;
    });
    part(".others").replaceChildren(...(same.length > 1 ? others : []));
  };
  const go = (place) => {
    if (place >= 0 && place < order.length) view(order[place], place);
  };
  // dresses the tile of a picture, or all, anew
  const again = (i) => {
    for (const tile of blocks.querySelectorAll(".tile")) {
      const own = order[tile.dataset.place];
      if (i === null || own === i) dress(tile, own);
    }
  };
  const toggle = (i) => {
    if (hidden(i)) shown.add(i);
    else {
      shown.delete(i);
      if (field("show")) field("show").checked = false;
    }
    again(i);
  };

  const focus = (place) => {
    const to = Math.max(0, Math.min(order.length - 1, place));
    const block = blocks.children[Math.floor(to / (columns * ROWS))];
    if (!block) return;
    fill(block);
    block.querySelector(`[data-place="${to}"] .view`)?.focus();
  };
  blocks.addEventListener("click", (event) => {
    const tile = event.target.closest(".view")?.closest(".tile");
    if (!tile) return;
    const place = Number(tile.dataset.place);
    if (hidden(order[place])) return toggle(order[place]);
    go(place);
    viewer.showModal();
  });
  blocks.addEventListener("keydown", (event) => {
    const place = Number(event.target.closest(".tile")?.dataset.place ?? NaN);
    const to = { ArrowLeft: place - 1, ArrowRight: place + 1, ArrowUp: place - columns, ArrowDown: place + columns, Home: 0, End: order.length - 1 }[event.key];
    if (to === undefined || Number.isNaN(to) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    focus(to);
  });
  viewer?.addEventListener("click", (event) => {
    const { name } = event.target;
    if (name === "close" || event.target === viewer) viewer.close();
    if (name === "previous" || name === "next") go(open + (name === "next" ? 1 : -1));
    if (name === "show") {
      toggle(large);
      view(large, open);
    }
  });
  viewer?.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") go(open + (event.key === "ArrowRight" ? 1 : -1));
  });
  viewer?.addEventListener("close", () => focus(open));

  let waiting = 0;
  form.addEventListener("input", (event) => {
    clearTimeout(waiting);
    if (event.target.name === "show") again(null);
    else if (event.target.tagName === "SELECT") filter();
    else waiting = setTimeout(filter, 120);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    filter();
  });
  form.addEventListener("reset", () => setTimeout(() => (shown.clear(), filter())));
  new ResizeObserver(() => {
    if (!blocks.clientWidth) return; // on paper
    if (fitting() === columns) measure();
    else lay();
  }).observe(wall);
  addEventListener("beforeprint", () => {
    paper.replaceChildren(...order.slice(0, PRINTED).map((_, place) => build(place)));
    if (order.length > PRINTED) status.textContent += `, of which the first ${PRINTED} are printed`;
  });
  addEventListener("afterprint", () => {
    paper.replaceChildren();
    status.textContent = status.textContent.split(", of which")[0];
  });

  // labels by detector, with the number of their pictures
  const select = field("label");
  if (select) {
    const counts = data.labels.map(() => 0);
    for (const { labels } of pictures) for (const label of new Set(labels)) counts[label] += 1;
    for (const detector of new Set(data.labels.map(([detector]) => detector))) {
      const group = document.createElement("optgroup");
      group.label = detector;
      data.labels.forEach(([of, label, flagged], i) => {
        if (of === detector) group.append(new Option(`${label} (${number(counts[i])})${flagged ? " ⚑" : ""}`, i));
      });
      select.append(group);
    }
  }
  filter();
})();
