//! `report.html`: what stands in it, and what a reader's browser makes of it.

#![allow(clippy::unwrap_used)]

mod chromium;

use chromium::{Area, Browser};
use erase_concept::audit::html::EraseReport;
use erase_concept::audit::{
    Answer, BlockTrim, Comparison, DetectorRecord, Drawn, Drift, PreservedCounts, Report, SCHEMA, Shown, Verification,
    VerifyRecord, moves,
};
use erase_concept::concept::{Concept, Kind};
use erase_concept::erase::{OtherWord, Settings, StepRecord, TrimSummary};
use image::{Rgb, RgbImage};
use std::collections::BTreeMap;

const BLUE: [u8; 3] = [20, 40, 220];
const RED: [u8; 3] = [220, 30, 20];
/// What a page must not be made to run, load or break by.
const HOSTILE: &str = "<script>window.pwned=1</script><img src=https://example.invalid/x onerror=pwned=1>\"'&";

/// A verification that a test can read off the pictures: all of one colour, with a pattern of lines.
fn verification(colour: [u8; 3], hits: usize, counted: bool) -> Verification {
    let image = |i: usize| {
        let paint = |x: u32, _| if (x + i as u32).is_multiple_of(16) { Rgb([255; 3]) } else { Rgb(colour) };
        RgbImage::from_fn(64, 64, paint)
    };
    let shown = |group: &str| {
        let one = |i: usize| Shown {
            prompt: format!("{group} {i} {HOSTILE}"),
            seed: i as u64,
            image: image(i),
            hit: i < hits,
        };
        (0..4).map(one).collect()
    };
    let drawn = |group: &'static str| {
        (0..20).map(move |i| Drawn { group, prompt: format!("{group} {i} {HOSTILE}"), seed: i as u64, image: image(i) })
    };
    let answers = |axis: &str| {
        let one = |picture| Answer {
            picture,
            label: format!("{axis}: {}", picture % 3),
            right: picture % 7 != 0 || hits > 2,
        };
        (0..40).map(one).collect::<Vec<_>>()
    };
    Verification {
        forget: counted.then(|| (0..20).map(|i| i < hits).collect()),
        synonyms: counted.then(|| (0..10).map(|i| i < hits / 2).collect()),
        retain: if counted {
            ["shape", "color"].map(|axis| (axis.to_string(), answers(axis))).into()
        } else {
            BTreeMap::new()
        },
        drawn: drawn("concept").chain(drawn("retain")).collect(),
        parts: Vec::new(),
        preserve: Vec::new(),
        shown_forget: shown("concept"),
        shown_retain: shown("retain"),
    }
}

/// A report made by hand.
fn page(kind: Kind, counted: bool, show: bool) -> String {
    let (before, after) = (verification(BLUE, 19, counted), verification(RED, 1, counted));
    let (moves, settings) = (moves(&before, &after), Settings::preset("balanced").unwrap());
    let tensor = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight".to_string();
    let block = |name: &str, scored, trimmed| BlockTrim { block: name.into(), entries: 900, scored, trimmed };
    let detector = DetectorRecord { name: "classifier".into(), sha256: "ab12".repeat(16), rule: "a rule".into() };
    let mut concept = Concept::resolve("star", None).unwrap();
    (concept.name, concept.kind) = (HOSTILE.into(), kind);
    concept.forget[0] = HOSTILE.into();
    let report = Report {
        schema: SCHEMA,
        concept: HOSTILE.into(),
        method: "scissorhands",
        preset: "balanced".into(),
        seed: 7,
        dtype: "bf16",
        device: "cpu".into(),
        tf32: false,
        version: "0.1.0",
        command: format!("erase-concept --concept '{HOSTILE}'"),
        hub: None,
        base_sha256: "0123456789abcdef".repeat(4),
        counts: Comparison::new(&before, &after),
        concepts: Vec::new(),
        preserve: vec![PreservedCounts { name: HOSTILE.into(), labels: vec![HOSTILE.into()], rate: None, drift: None }],
        drift: Drift::new(&moves),
        detector: counted.then_some(detector),
        verification: VerifyRecord { scheduler: "dpmpp_2m".into(), steps: 12, guidance_scale: 5.0, seed: 99 },
        settings,
        other_words: vec![
            OtherWord { word: "asterisk".into(), distance: 0.01, of: None },
            OtherWord { word: "solid".into(), distance: 0.75, of: None },
        ],
        trim: TrimSummary { scored: 900, k: 890, threshold: 1e-4, trimmed: [(tensor.clone(), 10)].into(), total: 10 },
        blocks: vec![block("down_blocks.0", 900, 10), block("mid_block", 0, 0), block("up_blocks.0", 0, 0)],
        losses: (0..40)
            .map(|i| StepRecord {
                retain: 1.0 / (i + 1) as f32,
                forget: 0.5,
                context: 0.0,
                projected: i % 4 == 0,
                v: 0.0,
            })
            .collect(),
    };
    let missed = ["--max-rate 0.01: the rate is 0.050".to_string()];
    let scored = [(tensor, 900)].into();
    let (concept, before, after, moves) = (&concept, &before, &after, &moves);
    EraseReport {
        report: &report,
        concept,
        model: "demo",
        before,
        after,
        moves,
        scored: &scored,
        missed: &missed,
        show,
    }
    .html()
    .unwrap()
}

fn png(picture: &RgbImage) -> String {
    let uri = erase_concept::audit::html::pictures::base64(&erase_concept::audit::encode_png(picture, &[]).unwrap());
    format!("base64,{uri}")
}

#[test]
fn says_in_words_what_was_found_and_repeats_every_setting_seed_and_hash() {
    let text = page(Kind::Object, true, false);
    for part in [
        "has almost vanished: it still appears in 1 of 20",
        "other words the model draws it too: erased with it, “asterisk”.",
        "solid</th><td>0.75</td><td>no",
        "5.0\u{a0}%",
        "--max-rate 0.01: the rate is 0.050",
        "shape: 2",
        "projected: 10 of 40",
        "learning_rate",
        "projection.relative_eps",
        &"0123456789abcdef".repeat(4),
        &"ab12".repeat(16),
        "retain 19",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    ] {
        assert!(text.contains(part), "{part} is not in the report");
    }
    assert_eq!(text, page(Kind::Object, true, false), "the same again");
}

#[test]
fn what_comes_from_the_user_is_escaped_and_nothing_is_loaded() {
    let text = page(Kind::Object, true, false);
    assert!(text.contains("&lt;script&gt;window.pwned"));
    assert_eq!(text.matches("<script").count(), 1, "only its own script");
    let tags = text.split('<').skip(1).filter_map(|part| part.split('>').next());
    let targets = tags
        .flat_map(|tag| ["src", "href", "srcset", "action", "poster", "data"].map(|name| (tag, format!(" {name}=\""))));
    let mut found = 0;
    for (tag, start) in targets {
        for target in tag.split(&start).skip(1) {
            assert!(target.starts_with("data:") || target.starts_with('#'), "{tag}");
            found += 1;
        }
    }
    assert!(found > 30, "{found}");
    assert!(!text.contains("url(") && !text.contains("@import"));
}

#[test]
fn without_a_detector_every_section_says_that_nothing_was_counted() {
    let text = page(Kind::Object, false, false);
    for part in [
        "nothing here can recognise it",
        "Nothing was counted: no detector that knows",
        "Nothing was counted: no detector beside this model recognises what the other prompts ask for",
        "none that knows the concept",
        "Most drifted prompts",
    ] {
        assert!(text.contains(part), "{part} is not in the report");
    }
}

#[test]
fn pictures_of_content_are_not_in_the_file_unless_they_are_asked_for() {
    let sharp = |colour, i: usize| png(&verification(colour, 0, true).shown_forget[i].image);
    // the same patterns are shown for everything else, so count how often each is there: its own place or not
    let count = |text: &str, colour, i| text.matches(&sharp(colour, i)).count();
    let (plain, blurred, shown) =
        (page(Kind::Object, true, false), page(Kind::Content, true, false), page(Kind::Content, true, true));
    for i in 0..4 {
        assert_eq!(count(&plain, BLUE, i) - count(&blurred, BLUE, i), 1, "picture {i} from before");
        assert_eq!(count(&plain, BLUE, i), count(&shown, BLUE, i));
    }
    // of those from after, only the one in which the concept was still found
    let hidden = [0, 1, 2, 3].map(|i| count(&plain, RED, i) - count(&blurred, RED, i));
    assert_eq!(hidden, [1, 0, 0, 0]);
    assert!(
        blurred.contains("no click brings the picture back") && !shown.contains("no click brings the picture back")
    );
}

/// The report in a browser; `None` where there is no browser.
fn opened() -> Option<(Browser, tempfile::TempDir)> {
    let mut browser = Browser::start(chromium::program()?);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.html");
    std::fs::write(&file, page(Kind::Object, true, false)).unwrap();
    browser.show_as(1100, "screen", "light");
    browser.open(&file);
    Some((browser, folder))
}

const FRAME: &str = "[data-pair] .frame";
const SLIDER: &str = "[data-pair] input";

/// Which picture is seen at a fraction of the first pair's width: `before`, `after` or neither.
fn seen(browser: &mut Browser, at: f64) -> &'static str {
    let area = browser.area(FRAME);
    // below the tags, between the lines of the pattern
    let spot = Area {
        x: (area.x + at * area.width).round(),
        y: (area.y + 0.6 * area.height).round(),
        width: 24.0,
        height: 4.0,
    };
    let picture = browser.picture(spot);
    let close = |colour: [u8; 3]| {
        let near = |p: &&Rgb<u8>| p.0.iter().zip(colour).all(|(a, b)| a.abs_diff(b) < 12);
        picture.pixels().filter(near).count() * 2 > picture.pixels().len()
    };
    if close(BLUE) {
        "before"
    } else if close(RED) {
        "after"
    } else {
        "neither"
    }
}

fn value(browser: &mut Browser, selector: &str) -> f64 {
    browser.eval(&format!("Number(document.querySelector({selector:?}).value)")).as_f64().unwrap()
}

#[test]
fn a_browser_opens_it_without_complaint_and_without_asking_for_anything() {
    let Some((mut browser, folder)) = opened() else { return };
    assert_eq!(browser.eval("[document.scripts.length, typeof pwned]").to_string(), r#"[1,"undefined"]"#);
    assert_eq!(browser.complaints(), Vec::<String>::new());
    // that silence means something: a page that does what must not be done is noticed
    let bad = folder.path().join("bad.html");
    std::fs::write(&bad, "<img src='http://127.0.0.1:9/x.png'><script>console.error('x'); throw 1</script>").unwrap();
    browser.open(&bad);
    assert!(browser.complaints().len() >= 3, "{:?}", browser.complaints());
}

#[test]
fn the_slider_shows_before_and_after_by_key_mouse_and_finger() {
    let Some((mut browser, _folder)) = opened() else { return };
    assert_eq!([seen(&mut browser, 0.1), seen(&mut browser, 0.7)], ["before", "after"], "half of each at first");
    browser.eval(&format!("document.querySelector({SLIDER:?}).focus()"));
    browser.key("End", 35);
    assert_eq!(
        (value(&mut browser, SLIDER), seen(&mut browser, 0.1), seen(&mut browser, 0.7)),
        (100.0, "before", "before")
    );
    browser.key("Home", 36);
    assert_eq!(
        (value(&mut browser, SLIDER), seen(&mut browser, 0.1), seen(&mut browser, 0.7)),
        (0.0, "after", "after")
    );
    browser.key("ArrowRight", 39);
    assert_eq!(value(&mut browser, SLIDER), 1.0);
    let said = browser.eval(&format!("document.querySelector({SLIDER:?}).getAttribute('aria-valuetext')"));
    assert_eq!(said, "1 % before, 99 % after");

    // on the slider itself
    let area = browser.area(SLIDER);
    let at = |area: Area, share: f64| (area.x + share * area.width, area.y + area.height / 2.0);
    browser.drag(at(area, 0.02), at(area, 0.5));
    let now = value(&mut browser, SLIDER);
    assert!((45.0..=55.0).contains(&now), "{now}");
    // on the picture
    let area = browser.area(FRAME);
    browser.drag(at(area, 0.5), at(area, 0.9));
    let now = value(&mut browser, SLIDER);
    assert!((88.0..=92.0).contains(&now), "{now}");
    assert_eq!(seen(&mut browser, 0.7), "before");
    // with a finger
    browser.show_as(360, "screen", "light");
    let area = browser.area(FRAME);
    browser.swipe(at(area, 0.9), at(area, 0.1));
    let now = value(&mut browser, SLIDER);
    assert!((8.0..=12.0).contains(&now), "{now}");
    assert_eq!(seen(&mut browser, 0.5), "after");
    // all at once
    browser.eval("document.querySelector('.all input').focus()");
    browser.key("End", 35);
    let all = browser
        .eval("[...document.querySelector('[data-gallery]').querySelectorAll('[data-pair] input')].map(i => i.value)");
    assert_eq!(all.to_string(), r#"["100","100","100","100"]"#);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn without_script_and_in_print_both_pictures_stand_side_by_side() {
    let Some((mut browser, folder)) = opened() else { return };
    let places = "(() => { const [b, a] = [...document.querySelectorAll('[data-pair] img')].slice(0, 2).map(i => i.getBoundingClientRect()); \
                  return [b.width > 40, a.width > 40, a.left >= b.right, Math.abs(a.top - b.top) < 1, \
                  getComputedStyle(document.querySelector('[data-pair] input')).display]; })()";
    assert_eq!(browser.eval(places)[2], false, "with script they lie on each other");
    browser.show_as(760, "print", "light");
    assert_eq!(browser.eval(places).to_string(), r#"[true,true,true,true,"none"]"#);
    browser.show_as(1100, "screen", "light");
    browser.call("Emulation.setScriptExecutionDisabled", serde_json::json!({ "value": true }));
    browser.open(&folder.path().join("report.html"));
    assert_eq!(browser.eval(places).to_string(), r#"[true,true,true,true,"none"]"#);
}

#[test]
fn it_fits_a_phone_and_follows_light_and_dark() {
    let Some((mut browser, _folder)) = opened() else { return };
    for width in [320, 360, 768, 1100] {
        browser.show_as(width, "screen", "light");
        browser.eval("document.querySelectorAll('details').forEach(d => d.open = true)");
        let wide = browser.eval("document.documentElement.scrollWidth").as_u64().unwrap();
        assert!(wide <= u64::from(width), "{wide} pixels in a window of {width}");
    }
    let colours = "(() => { const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]; })()";
    let light = browser.eval(colours);
    browser.show_as(1100, "screen", "dark");
    let dark = browser.eval(colours);
    let brightness = |colour: &serde_json::Value| {
        let text = colour.as_str().unwrap();
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok()).take(3).sum::<u32>()
    };
    assert!(brightness(&light[0]) > 650 && brightness(&light[1]) < 200, "{light}");
    assert!(brightness(&dark[0]) < 120 && brightness(&dark[1]) > 550, "{dark}");
}

#[test]
fn everything_that_can_be_used_or_looked_at_has_a_name() {
    let Some((mut browser, _folder)) = opened() else { return };
    browser.eval("document.querySelectorAll('details').forEach(d => d.open = true)");
    browser.call("Accessibility.enable", serde_json::json!({}));
    let tree = browser.call("Accessibility.getFullAXTree", serde_json::json!({}));
    let nodes: Vec<(&str, &str)> = tree["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|n| n["ignored"] != true)
        .map(|n| (n["role"]["value"].as_str().unwrap_or_default(), n["name"]["value"].as_str().unwrap_or_default()))
        .collect();
    let of = |role: &str| nodes.iter().filter(|(r, _)| *r == role).map(|(_, name)| *name).collect::<Vec<_>>();
    for (role, least) in [("slider", 14), ("image", 28), ("table", 8), ("region", 10), ("navigation", 1), ("link", 8)] {
        let names = of(role);
        assert!(names.len() >= least, "{} of role {role}", names.len());
        assert!(names.iter().all(|name| !name.trim().is_empty()), "a {role} has no name: {names:?}");
    }
    assert_eq!((of("main").len(), of("banner").len(), of("contentinfo").len()), (1, 1, 1));
    let sliders = of("slider");
    let distinct: std::collections::BTreeSet<_> = sliders.iter().collect();
    assert_eq!(distinct.len(), sliders.len(), "sliders can be told apart: {sliders:?}");
    assert_eq!(browser.eval("[document.documentElement.lang, document.querySelectorAll('h1').length, document.querySelectorAll('th:not([scope])').length]").to_string(), r#"["en",1,0]"#);
}
