//! The gallery of an audit's report: ten thousand pictures in a browser, filters, flagged pictures, sizes.
//!
//! `GALLERY=folder` keeps the pages that are made here, to be looked at.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod chromium;

use chromium::Browser;
use erase_concept::audit::html::AuditReport;
use erase_concept::audit::html::gallery::{Found, Gallery, GalleryLabel, GalleryPicture, REPORT_SIZE};
use erase_concept::audit::run::{Entry, Header, MANIFEST_SCHEMA, ReportSettings, Shard, Summary, gallery};
use erase_concept::progress::Silent;
use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What a page must not be made to run, load or break by.
const HOSTILE: &str = "</script><img src=x onerror=\"window.pwned=1\"><!--<script>window.pwned=1</script>";
const MODELS: [&str; 2] = ["base", "erased"];
const SHAPES: [&str; 5] = ["star", "circle", "ring", "square", "heart"];
const COLOURS: [&str; 4] = ["red", "green", "blue", "pink"];

/// As it stands in a manifest.
fn header(rows: usize, images: bool) -> Header {
    let labels: Vec<String> =
        SHAPES.map(|s| format!("shape: {s}")).into_iter().chain(COLOURS.map(|c| format!("color: {c}"))).collect();
    let header = json!({
        "schema": MANIFEST_SCHEMA,
        "version": "0.1.0",
        "models": MODELS.map(|name| json!({ "name": name, "sha256": "ab".repeat(32) })),
        "prompts": { "sha256": "cd".repeat(32), "rows": rows, "skipped": [] },
        "settings": {
            "scheduler": ["ddim", "ddim"], "steps": 30, "dtype": "f32", "instructions": "avx2", "seed": 0, "guidance_scale": 7.5,
            "width": null, "height": null, "ignore": [], "from_case": null, "limit": null, "samples": 1, "images": images,
        },
        "detectors": [{ "key": "classifier", "name": "image classifier", "sha256": "ef".repeat(32), "labels": labels }],
        "shard": Shard::WHOLE,
    });
    serde_json::from_value(header).unwrap()
}

/// The pictures of so many rows by both models; every ninth star of the base is one of the erased model too.
fn entries(header: &Header) -> Vec<Entry> {
    let rows = header.prompts.rows;
    let entry = |model: usize, row: usize| {
        let shape = if model == 1 && row.is_multiple_of(5) && !row.is_multiple_of(9) { 1 } else { row % 5 };
        let prompt = match row {
            3 => HOSTILE.to_string(),
            _ => format!(
                "a photo of a {} {} in the style of nobody, number {row}, highly detailed, artstation",
                COLOURS[row / 5 % 4],
                SHAPES[row % 5]
            ),
        };
        let file = header.settings.images.then(|| format!("images/{}/{row}_0.png", MODELS[model]));
        let mut entry = json!({
            "model": MODELS[model], "case": row.to_string(), "sample": 0, "line": row + 2, "prompt": prompt,
            "seed": if row == 7 { u64::MAX } else { 1_000 + row as u64 }, "guidance_scale": 7.5, "width": 512,
            "height": if row % 10 == 1 { 768 } else { 512 }, "sha256": "01".repeat(32),
            "labels": { "classifier": [format!("shape: {}", SHAPES[shape]), format!("color: {}", COLOURS[row / 5 % 4])] },
        });
        if let Some(file) = file {
            entry["file"] = file.into();
        }
        serde_json::from_value(entry).unwrap()
    };
    (0..2).flat_map(|model| (0..rows).map(move |row| entry(model, row))).collect()
}

/// Something like a photograph: soft light, an object, a little noise.
fn photograph(i: usize, (width, height): (u32, u32)) -> RgbImage {
    let mut state = i as u64 * 0x9e37_79b9_7f4a_7c15 + 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    random();
    let (tint, object) = ([random(), random(), random()], [random(), random(), random()]);
    let (cx, cy, radius, waves) =
        (0.3 + 0.4 * random(), 0.3 + 0.4 * random(), 0.12 + 0.2 * random(), 4.0 + 20.0 * random());
    let noise: Vec<f32> = (0..257).map(|_| random() - 0.5).collect();
    RgbImage::from_fn(width, height, |px, py| {
        let (x, y) = (px as f32 / width as f32, py as f32 / height as f32);
        let light = 0.35 + 0.5 * (1.0 - y) + 0.08 * (waves * x + 3.0 * (waves * y).sin()).sin();
        let edge = radius * (1.0 + 0.25 * (5.0 * (y - cy).atan2(x - cx)).sin());
        let inside = ((x - cx).powi(2) + (y - cy).powi(2)).sqrt() < edge;
        let grain = 0.12 * noise[(px * 31 + py * 57) as usize % 257];
        let of = |channel: usize| {
            let own: f32 = if inside { object[channel] * (1.2 - y + cy) } else { light * (0.4 + 0.6 * tint[channel]) };
            ((own + grain) * 255.0).clamp(0.0, 255.0) as u8
        };
        Rgb([of(0), of(1), of(2)])
    })
}

/// The picture of an entry: one of a few, so that ten thousand are there at once.
fn picture(i: usize, entry: &Entry) -> RgbImage {
    static MADE: OnceLock<Vec<[RgbImage; 2]>> = OnceLock::new();
    let made = MADE.get_or_init(|| (0..97).map(|i| [(160, 160), (128, 192)].map(|size| photograph(i, size))).collect());
    made[i % 97][usize::from(entry.height > entry.width)].clone()
}

/// The report of `rows` rows by two models.
fn page(rows: usize, images: bool, settings: &ReportSettings) -> String {
    let header = header(rows, images);
    let entries = entries(&header);
    let report = AuditReport {
        summary: &Summary::new(Path::new("."), &header, &entries).unwrap(),
        gallery: gallery(&header, &entries, settings).unwrap(),
        limits: &[],
        missed: &[],
    };
    report.html(settings.size, &|i| Ok(picture(i, &entries[i])), &mut Silent).unwrap()
}

fn flagging_stars() -> ReportSettings {
    ReportSettings { flag: vec!["star".into()], ..Default::default() }
}

/// What the page's script reads.
fn data(page: &str) -> Value {
    let (_, rest) = page.split_once("id=\"gallery-data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

/// The thumbnail of a picture, as the page has it.
fn thumbnail(data: &Value, i: usize) -> Option<String> {
    let picture = &data["pictures"][i];
    let head = &data["heads"][picture[9].as_u64()? as usize];
    Some(format!("data:image/jpeg;base64,{}{}", head.as_str()?, picture[10].as_str()?))
}

/// Scrolls to the gallery at once.
const TO_PICTURES: &str =
    "document.documentElement.style.scrollBehavior = 'auto'; document.getElementById('pictures').scrollIntoView()";

/// A page in a browser, with the files of some pictures beside it.
struct Opened {
    browser: Browser,
    folder: tempfile::TempDir,
}

impl std::ops::Deref for Opened {
    type Target = Browser;
    fn deref(&self) -> &Browser {
        &self.browser
    }
}

impl std::ops::DerefMut for Opened {
    fn deref_mut(&mut self) -> &mut Browser {
        &mut self.browser
    }
}

/// Writes and opens a page; `None` where there is no browser. `beside` pictures have a file.
fn open(name: &str, text: &str, beside: usize) -> Option<Opened> {
    if let Some(keep) = std::env::var_os("GALLERY") {
        std::fs::write(Path::new(&keep).join(format!("{name}.html")), text).unwrap();
    }
    let mut browser = Browser::start(chromium::program()?);
    let folder = tempfile::tempdir().unwrap();
    for i in 0..beside {
        let file = folder.path().join(format!("images/base/{i}_0.png"));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        photograph(i, (256, 256)).save(file).unwrap();
    }
    std::fs::write(folder.path().join("report.html"), text).unwrap();
    browser.show_as(1280, "screen", "light");
    browser.open(&folder.path().join("report.html"));
    browser.eval(TO_PICTURES);
    let mut opened = Opened { browser, folder };
    opened.until("document.querySelectorAll('.tile').length > 0"); // they are made once they are near
    Some(opened)
}

impl Opened {
    /// Waits until an expression is true.
    fn until(&mut self, expression: &str) {
        let began = Instant::now();
        while self.eval(&format!("Boolean({expression})")) != true {
            assert!(began.elapsed() < Duration::from_secs(30), "{expression} is never true");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sets a filter and waits until it is done; milliseconds until its first pictures can be seen.
    fn filter(&mut self, name: &str, value: &str) -> f64 {
        let script = format!(
            "(() => {{ window.done = 0; const [began, form] = [performance.now(), document.getElementById('filters')]; \
             const field = form.elements[{name:?}]; field.value = {value:?}; \
             if (field.tagName === 'SELECT') field.dispatchEvent(new Event('input', {{ bubbles: true }})); else form.requestSubmit(); \
             requestAnimationFrame(() => requestAnimationFrame(async () => {{ \
             await Promise.all([...document.querySelectorAll('.tile img[src]')].slice(0, 12).map((image) => image.decode().catch(() => 0))); \
             window.done = performance.now() - began; }})); }})()"
        );
        self.eval(&script);
        self.until("window.done");
        self.eval("window.done").as_f64().unwrap()
    }

    fn status(&mut self) -> String {
        self.eval("document.querySelector('.count').textContent").as_str().unwrap().into()
    }

    /// How many pictures pass the filters.
    fn count(&mut self) -> usize {
        let status = self.status();
        status.split(' ').next().unwrap().replace(',', "").parse().unwrap()
    }

    fn reset(&mut self) {
        self.eval("document.querySelector('#filters [type=reset]').click()");
        self.until("!document.querySelector('.count').textContent.includes('%')");
    }

    /// Seeds of the pictures that are built, in order.
    fn seeds(&mut self) -> Vec<String> {
        let seeds =
            self.eval("[...document.querySelectorAll('.blocks .seed')].map((s) => s.textContent.split('seed ')[1])");
        seeds.as_array().unwrap().iter().map(|seed| seed.as_str().unwrap().into()).collect()
    }

    fn click(&mut self, selector: &str) {
        let area = self.area(selector);
        let at = (area.x + area.width / 2.0, area.y + area.height / 3.0);
        self.drag(at, at);
    }
}

#[test]
fn ten_thousand_pictures_open_in_three_seconds_and_keep_to_the_size() {
    let text = page(5_000, true, &flagging_stars());
    assert!(text.len() as u64 <= REPORT_SIZE, "{} bytes", text.len());
    let data = data(&text);
    let inlined = (0..10_000).filter(|i| thumbnail(&data, *i).is_some()).count();
    assert!(inlined == 10_000 && text.len() as u64 > REPORT_SIZE / 2, "{inlined} in {} bytes", text.len());
    let Some(mut page) = open("ten-thousand", &text, 0) else { return };
    page.until("document.querySelectorAll('.tile img').length > 12 && [...document.querySelectorAll('.tile img')].every((i) => i.complete)");
    // until the first pictures are painted: decoded, and two frames later
    page.eval(
        "Promise.all([...document.querySelectorAll('.tile img')].map((i) => i.decode())).then(() => \
         requestAnimationFrame(() => requestAnimationFrame(() => (window.painted = performance.now()))))",
    );
    page.until("window.painted");
    let painted = page.eval("window.painted").as_f64().unwrap();
    let loaded = page.eval("performance.getEntriesByType('navigation')[0].loadEventEnd").as_f64().unwrap();
    let words =
        page.eval("performance.getEntriesByName('first-contentful-paint')[0]?.startTime").as_f64().unwrap_or(0.0);
    println!(
        "10,000 pictures, {:.1} MB: words after {words:.0} ms, loaded after {loaded:.0} ms, first pictures painted after {painted:.0} ms",
        text.len() as f64 / 1e6
    );
    assert!(painted.max(loaded) < 3_000.0, "{loaded} and {painted} ms");
    for (name, value, expected) in [
        ("model", "1", 5_000),
        ("label", "0", 112),
        ("label", "", 5_000),
        ("model", "", 10_000),
        ("prompt", "BLUE star", 500),
    ] {
        let took = page.filter(name, value);
        println!("filter {name} = {value:?}: {} in {took:.0} ms", page.status());
        assert_eq!(page.count(), expected, "{name} = {value}");
        assert!(took < 1_000.0, "{took} ms");
    }
    page.reset();
    // what is scrolled to is built, and little else
    for share in [0.3, 0.9, 0.0, 0.6] {
        page.eval(&format!(
            "(() => {{ const w = document.querySelector('.blocks').getBoundingClientRect(); scrollBy(0, w.top + {share} * w.height); }})()"
        ));
        page.until(
            "[...document.querySelectorAll('.tile')].some((t) => { const r = t.getBoundingClientRect(); return r.top > 200 && r.bottom < 900; })",
        );
        let there = page.eval(
            "(() => { const t = [...document.querySelectorAll('.tile')].find((t) => t.getBoundingClientRect().top > 0); \
             return [Number(t.dataset.place), document.querySelectorAll('.tile').length, t.querySelector('.seed').textContent]; })()",
        );
        let place = there[0].as_u64().unwrap();
        assert!((place as f64 / 10_000.0 - share).abs() < 0.01, "{share}: {there}");
        assert!(there[1].as_u64().unwrap() < 400, "{there} tiles");
        let (model, row) = (if place < 5_000 { "base" } else { "erased" }, place % 5_000);
        let seed = if row == 7 { u64::MAX } else { 1_000 + row };
        assert_eq!(there[2], format!("{model} · {row} · seed {seed}"));
    }
    assert_eq!(page.complaints(), Vec::<String>::new());
}

#[test]
fn what_passes_a_filter_is_what_the_manifest_says() {
    let header = header(60, true);
    let entries = entries(&header);
    let Some(mut page) = open("filters", &page(60, true, &flagging_stars()), 0) else { return };
    let labels: Vec<(String, String)> = page
        .eval("[...document.querySelectorAll('[name=label] option')].slice(1).map((o) => [o.value, o.textContent])")
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| (pair[0].as_str().unwrap().into(), pair[1].as_str().unwrap().into()))
        .collect();
    assert_eq!(labels.len(), 9);
    let has = |e: &Entry, label: &str| e.labels["classifier"].iter().any(|own| own == label);
    for (value, text) in labels {
        let label = text.split(" (").next().unwrap();
        let expected = entries.iter().filter(|e| has(e, label)).count();
        page.filter("label", &value);
        assert_eq!(page.count(), expected, "{label}");
        assert!(text.contains(&format!(" ({expected})")) && text.contains('⚑') == (label == "shape: star"), "{text}");
        let of_model = entries.iter().filter(|e| has(e, label) && e.model == "erased").count();
        page.filter("model", "1");
        assert_eq!(page.count(), of_model, "{label} of one model");
        page.reset();
    }
    let stars = entries.iter().filter(|e| has(e, "shape: star")).count();
    for (value, expected) in [("1", stars), ("0", entries.len() - stars)] {
        page.filter("flagged", value);
        assert_eq!(page.count(), expected);
    }
    page.reset();
    page.filter("seed", "18446744073709551615");
    assert_eq!((page.count(), page.seeds()), (2, vec!["18446744073709551615".to_string(); 2]), "no digit is lost");
    for other in ["18446744073709551614", "1844674407370955161"] {
        page.filter("seed", other);
        assert_eq!(page.count(), 0, "{other} is another seed");
    }
    page.filter("seed", "");
    page.filter("prompt", "  Number 1");
    assert_eq!(page.count(), entries.iter().filter(|e| e.prompt.contains("number 1")).count());
    assert_eq!(page.complaints(), Vec::<String>::new());
}

#[test]
fn flagged_pictures_are_not_in_the_page_until_they_are_asked_for() {
    let (hidden, shown) =
        (page(40, true, &flagging_stars()), page(40, true, &ReportSettings { show: true, ..flagging_stars() }));
    let (of_hidden, of_shown) = (data(&hidden), data(&shown));
    for (i, entry) in entries(&header(40, true)).iter().enumerate() {
        let sharp = of_shown["pictures"][i][10].as_str().unwrap();
        let star = entry.labels["classifier"].iter().any(|label| label == "shape: star");
        assert_eq!(of_hidden["pictures"][i][10].as_str().unwrap() == sharp, !star, "picture {i}");
        assert!(!star || of_hidden["pictures"][i][10].as_str().unwrap().len() < 1_000);
    }
    assert!(hidden.contains("of 80 are flagged: given “shape: star”") && !shown.contains("unrecognisable"));
    let Some(mut page) = open("flagged", &hidden, 40) else { return };
    let tile = |place: usize| format!(".tile[data-place=\"{place}\"] .view");
    let state = |page: &mut Opened, place: usize| -> (String, String) {
        page.until(&format!("document.querySelector({:?})", tile(place)));
        let found = page.eval(&format!(
            "(() => {{ const v = document.querySelector({:?}); return [v.getAttribute('aria-label'), v.querySelector('img').src.slice(0, 15)]; }})()",
            tile(place)
        ));
        (found[0].as_str().unwrap().into(), found[1].as_str().unwrap().into())
    };
    // picture 0 is a star; nothing of its file is asked for before the click
    let (name, src) = state(&mut page, 0);
    assert_eq!(
        name,
        "Show the flagged picture (star) of case 0 of base, seed 1000: a photo of a red star in the style of nobody, number 0, highly detailed, artstation"
    );
    assert_eq!(src, "data:image/jpeg");
    assert_eq!(page.complaints(), Vec::<String>::new());
    page.click(&tile(0));
    page.until(&format!("document.querySelector('{}').querySelector('img').naturalWidth === 256", tile(0)));
    let (name, src) = state(&mut page, 0);
    assert!(name.starts_with("Open the picture of case 0 of base") && src.starts_with("file:"), "{name} {src}");
    assert_eq!(page.eval("document.getElementById('viewer').open"), false, "one click only shows it");
    // by key
    page.eval(&format!("document.querySelector('{}').focus()", tile(10)));
    page.key("Enter", 13);
    page.until(&format!("document.querySelector('{}').querySelector('img').naturalWidth === 256", tile(10)));
    assert_eq!(page.eval("document.activeElement.closest('.tile').dataset.place"), "10");
    // and the next key opens it, large, with all that is known of it
    page.key("Enter", 13);
    page.until("document.getElementById('viewer').open");
    let said = page.eval("document.getElementById('viewer').textContent");
    for part in ["11 of 80", "a photo of a blue star", "1010", "512 × 512", "shape: star", "erased", "Hide it"] {
        assert!(said.as_str().unwrap().contains(part), "{part}: {said}");
    }
    page.click("#viewer [name=show]");
    page.until("document.querySelector('.stage img').src.startsWith('data:')");
    assert!(state(&mut page, 10).0.starts_with("Show the flagged picture"));
    // on to the next flagged one, which is not shown either
    page.eval("document.querySelector('#viewer [name=next]').focus()");
    for _ in 0..5 {
        page.key("ArrowRight", 39);
    }
    let viewed = page.eval("[document.querySelector('#viewer dd:nth-of-type(2)').textContent, document.querySelector('.stage img').src.slice(0, 5)]");
    assert_eq!(viewed.to_string(), r#"["15","data:"]"#);
    page.key("Escape", 27);
    page.until(
        "!document.getElementById('viewer').open && document.activeElement.closest('.tile')?.dataset.place === '15'",
    );
    // where the file is gone, that is said
    std::fs::remove_file(page.folder.path().join("images/base/20_0.png")).unwrap();
    page.click(&tile(20));
    page.until(&format!("document.querySelector('{}').closest('.lost')", tile(20)));
    assert_eq!(
        page.eval(&format!("document.querySelector('{} .veil').textContent", tile(20))),
        "The file is not beside this page."
    );
    // all at once, and back
    page.click("[name=show][type=checkbox]");
    page.until("document.querySelectorAll('.tile.flagged').length > 2 && !document.querySelector('.tile.hidden')");
    page.reset();
    page.until(
        "document.querySelectorAll('.tile.hidden').length === document.querySelectorAll('.tile.flagged').length",
    );
}

#[test]
fn what_does_not_fit_is_read_from_the_files_and_what_cannot_be_listed_is_said() {
    let small = ReportSettings { size: 400_000, ..Default::default() };
    let text = page(200, true, &small);
    let of = data(&text);
    let inlined = (0..400).filter(|i| thumbnail(&of, *i).is_some()).count();
    assert!(text.len() <= 400_000 && (50..400).contains(&inlined), "{inlined} in {} bytes", text.len());
    assert!(text.contains(&format!("Thumbnails of {inlined} of these pictures are in this file")));
    let smaller = page(3_000, true, &small);
    let listed = data(&smaller)["pictures"].as_array().unwrap().len();
    assert!(smaller.len() <= 400_000 && (500..6_000).contains(&listed), "{listed} in {} bytes", smaller.len());
    assert!(smaller.contains("of 6,000 pictures are listed"));
    let nothing = page(50, true, &ReportSettings { size: 1, ..Default::default() });
    assert_eq!(data(&nothing)["pictures"].as_array().unwrap().len(), 0, "only what does not depend on pictures");

    // room for the list and few thumbnails
    let of_size = |size| page(30, true, &ReportSettings { size, ..Default::default() });
    let none = of_size(of_size(1).len() as u64 + 30_000);
    let there = data(&none);
    let first = (0..60).find(|i| thumbnail(&there, *i).is_none()).unwrap();
    assert!(first < 30 && there["pictures"].as_array().unwrap().len() == 60, "{first}");
    let Some(mut page) = open("linked", &none, 30) else { return };
    page.until(
        "document.querySelectorAll('.tile img').length >= 30 && \
         [...document.querySelectorAll('.tile img')].slice(0, 30).every((i) => i.complete && i.naturalWidth > 0)",
    );
    let linked = format!("document.querySelectorAll('.tile img')[{first}]");
    assert_eq!(
        page.eval(&format!("[{linked}.src.slice(0, 5), {linked}.naturalWidth]")).to_string(),
        r#"["file:",256]"#
    );
}

#[test]
fn a_hostile_prompt_is_only_text() {
    let text = page(20, true, &Default::default());
    assert_eq!(text.matches("<script").count(), 3, "its two scripts and its data");
    assert!(!text.contains("<img src=x") && text.contains("\\u003c/script>\\u003cimg src=x"));
    for outside in ["http:", "https:", "url(", "@import"] {
        assert!(!text.contains(outside), "{outside}");
    }
    let Some(mut page) = open("hostile", &text, 0) else { return };
    page.filter("seed", "1003");
    assert_eq!(page.eval("document.querySelector('.tile .prompt').textContent"), HOSTILE);
    page.click(".tile .view");
    page.until("document.getElementById('viewer').open");
    assert_eq!(page.eval("document.getElementById('viewer-title').textContent"), HOSTILE);
    assert_eq!(
        page.eval("[typeof pwned, document.scripts.length, document.querySelectorAll('[onerror]').length]").to_string(),
        r#"["undefined",3,0]"#
    );
    let asked = |event: &&Value| event["method"] == "Network.requestWillBeSent";
    let addresses: Vec<&str> =
        page.events.iter().filter(asked).filter_map(|e| e["params"]["request"]["url"].as_str()).collect();
    let ours =
        |url: &&str| url.starts_with("data:") || url.ends_with("/report.html") || url.ends_with("/images/base/3_0.png");
    assert!(addresses.iter().all(ours), "{addresses:?}");
}

#[test]
fn without_pictures_it_is_a_list() {
    let text = page(30, false, &flagging_stars());
    assert!(text.contains("no picture was kept") && !text.contains("<dialog"));
    assert_eq!(data(&text)["heads"].as_array().unwrap().len(), 0);
    let Some(mut page) = open("no-images", &text, 0) else { return };
    page.filter("label", "1");
    assert_eq!(
        page.count(),
        entries(&header(30, false)).iter().filter(|e| e.labels["classifier"][0] == "shape: circle").count()
    );
    assert_eq!(
        page.eval("[document.images.length, document.querySelector('.tile').textContent.includes('circle, ')]")
            .to_string(),
        "[0,true]"
    );
    assert_eq!(page.complaints(), Vec::<String>::new());
}

#[test]
fn scores_order_and_limit_what_is_shown() {
    let header = header(10, false);
    let summary = Summary::new(Path::new("."), &header, &[]).unwrap();
    let prompts: Vec<String> = (0..10).map(|i| format!("prompt {i}")).collect();
    let of = |i: usize| GalleryPicture {
        model: 0,
        case: "1",
        sample: i,
        prompt: &prompts[i],
        seed: i as u64,
        guidance_scale: 7.5,
        size: (64, 64),
        file: None,
        labels: vec![
            Found { label: 0, score: Some((i * 7 % 10) as f64 / 10.0) },
            Found { label: 1, score: i.is_multiple_of(2).then_some(0.99) },
        ],
    };
    let label = |label| GalleryLabel { detector: "nudenet", label, flagged: false };
    let gallery = Gallery {
        models: vec!["m"],
        labels: vec![label("FEET_EXPOSED"), label("FACE")],
        pictures: (0..10).map(of).collect(),
        hide: true,
    };
    let report = AuditReport { summary: &summary, gallery, limits: &[], missed: &[] };
    let text = report.html(REPORT_SIZE, &|_| panic!("none"), &mut Silent).unwrap();
    let Some(mut page) = open("scores", &text, 0) else { return };
    assert!(
        page.eval("document.querySelector('.tile .found').textContent")
            .as_str()
            .unwrap()
            .contains("FEET_EXPOSED 0.00, FACE 0.99")
    );
    page.filter("label", "0");
    page.filter("order", "score");
    assert_eq!(page.seeds(), ["7", "4", "1", "8", "5", "2", "9", "6", "3", "0"]);
    page.filter("score", "0.7");
    assert_eq!(page.seeds(), ["7", "4", "1"]);
    page.filter("label", "1");
    assert_eq!(page.seeds(), ["0", "2", "4", "6", "8"]);
}

#[test]
fn it_fits_a_phone_prints_and_does_without_script() {
    let Some(mut page) = open("phone", &page(60, true, &flagging_stars()), 40) else { return };
    for width in [320, 360, 768, 1280] {
        page.show_as(width, "screen", "light");
        page.eval(TO_PICTURES);
        page.until(&format!("document.querySelectorAll('.tile').length > 0 && innerWidth === {width}"));
        let expected = if width < 400 {
            2
        } else if width < 1000 {
            4
        } else {
            6
        };
        // the page lays its tiles out anew when it hears of its new width, a moment after the window has it
        page.until(&format!(
            "new Set([...document.querySelectorAll('.block:first-child .tile')].map((t) => t.getBoundingClientRect().left)).size === {expected}"
        ));
        let wide = page.eval("document.documentElement.scrollWidth").as_u64().unwrap();
        assert!(wide <= u64::from(width), "{wide} pixels in a window of {width}");
    }
    page.show_as(760, "print", "light");
    page.eval("dispatchEvent(new Event('beforeprint'))");
    let printed = page.eval(
        "[document.querySelectorAll('.paper .tile').length, getComputedStyle(document.querySelector('.paper')).display, getComputedStyle(document.querySelector('.blocks')).display, \
         getComputedStyle(document.querySelector('.filters')).display, document.querySelector('.count').textContent]",
    );
    assert_eq!(printed.to_string(), r#"[60,"grid","none","none","120 pictures, of which the first 60 are printed"]"#);
    page.eval("dispatchEvent(new Event('afterprint'))");
    assert_eq!(
        (page.status(), page.eval("document.querySelectorAll('.paper .tile').length")),
        ("120 pictures".into(), 0.into())
    );
    page.show_as(1280, "screen", "light");
    page.call("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
    let report = page.folder.path().join("report.html");
    page.browser.open(&report);
    let plain = page.eval(
        "[document.querySelectorAll('.plain li').length, getComputedStyle(document.querySelector('.filters')).display, \
         document.querySelectorAll('.plain li')[3].textContent.includes('</script>'), document.querySelectorAll('.plain li')[0].querySelectorAll('img').length, \
         document.querySelectorAll('.plain li')[1].querySelector('img').naturalWidth]",
    );
    assert_eq!(plain.to_string(), r#"[100,"none",true,0,256]"#);
}

#[test]
fn everything_that_can_be_used_has_a_name() {
    let Some(mut page) = open("names", &page(30, true, &flagging_stars()), 30) else { return };
    page.call("Accessibility.enable", json!({}));
    let names = |page: &mut Opened, role: &str| -> Vec<String> {
        let tree = page.call("Accessibility.getFullAXTree", json!({}));
        let nodes =
            tree["nodes"].as_array().unwrap().iter().filter(|n| n["ignored"] != true && n["role"]["value"] == role);
        nodes.map(|n| n["name"]["value"].as_str().unwrap_or_default().to_string()).collect()
    };
    page.until("document.querySelectorAll('.tile').length === 60");
    for (role, least) in
        [("search", 1), ("searchbox", 1), ("combobox", 3), ("textbox", 1), ("checkbox", 1), ("button", 61)]
    {
        let found = names(&mut page, role);
        assert!(found.len() >= least && found.iter().all(|name| !name.trim().is_empty()), "{role}: {found:?}");
    }
    let buttons = names(&mut page, "button");
    let distinct: std::collections::BTreeSet<_> = buttons.iter().collect();
    assert_eq!(distinct.len(), buttons.len(), "buttons can be told apart");
    // by arrow keys, over the edge of what is built too
    page.eval("document.querySelector('.tile .view').focus()");
    for (key, code, place) in [
        ("ArrowRight", 39, 1),
        ("ArrowDown", 40, 7),
        ("ArrowLeft", 37, 6),
        ("End", 35, 59),
        ("ArrowUp", 38, 53),
        ("Home", 36, 0),
    ] {
        page.key(key, code);
        assert_eq!(page.eval("Number(document.activeElement.closest('.tile').dataset.place)"), place, "{key}");
    }
    page.key("ArrowRight", 39);
    page.key("Enter", 13);
    page.until("document.getElementById('viewer').open");
    let dialog = names(&mut page, "dialog");
    assert!(dialog.len() == 1 && dialog[0].starts_with("a photo of a red circle"), "{dialog:?}");
}
