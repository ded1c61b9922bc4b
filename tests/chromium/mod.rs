//! A headless Chromium, driven over its DevTools protocol through two pipes: no crate, no port, no download.

use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Seconds after which a browser that hangs is ended, so that its test fails.
const TIMEOUT: &str = "300";

/// A running browser with one page.
pub struct Browser {
    child: Child,
    to: File,
    from: BufReader<File>,
    session: Option<String>,
    last_id: u64,
    /// Everything that the page reported, in order.
    pub events: Vec<Value>,
    _folder: tempfile::TempDir,
}

/// A rectangle on the page, in CSS pixels.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

/// The browser's program. Where there is none, says so and returns nothing; under CI that is a failure.
pub fn program() -> Option<&'static str> {
    let known = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let there = |name: &&str| {
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|p| p.join(name).is_file())
    };
    let found = known.into_iter().find(|name| there(name));
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI needs a Chromium to open the report: apt-get install chromium");
        eprintln!("SKIPPED: no Chromium on this machine ({}), the report was not opened", known.join(", "));
    }
    found
}

impl Browser {
    pub fn start(program: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert!(Command::new("mkfifo").args([path("to"), path("from")]).status().unwrap().success());
        // the shell opens the pipes as the descriptors 3 and 4 that the browser reads from and writes to
        let child = Command::new("sh")
            .args(["-c", r#"exec timeout "$0" "$@" 3<"$TO" 4>"$FROM""#, TIMEOUT, program])
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--hide-scrollbars", "--remote-debugging-pipe", "about:blank"])
            .arg(format!("--user-data-dir={}", path("profile").display()))
            .env("TO", path("to"))
            .env("FROM", path("from"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let to = File::options().write(true).open(path("to")).unwrap();
        let from = BufReader::new(File::open(path("from")).unwrap());
        let mut browser = Self { child, to, from, session: None, last_id: 0, events: Vec::new(), _folder: folder };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attached =
            browser.call("Target.attachToTarget", json!({ "targetId": target["targetId"], "flatten": true }));
        browser.session = attached["sessionId"].as_str().map(String::from);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Sends a command and waits for its result; what happens meanwhile is kept in `events`.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut message = json!({ "id": self.last_id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let answer = self.read();
            if answer["id"] == json!(self.last_id) {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.events.push(answer);
        }
    }

    fn read(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.from.read_until(0, &mut bytes).unwrap();
        assert_eq!(bytes.pop(), Some(0), "the browser ended (or hung for {TIMEOUT} s)");
        serde_json::from_slice(&bytes).unwrap()
    }

    /// Opens a file and waits until it is loaded.
    pub fn open(&mut self, file: &Path) {
        self.events.clear();
        self.call("Page.navigate", json!({ "url": format!("file://{}", file.display()) }));
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            let event = self.read();
            self.events.push(event);
        }
    }

    /// The value of an expression in the page.
    pub fn eval(&mut self, expression: &str) -> Value {
        let answer = self.call("Runtime.evaluate", json!({ "expression": expression, "returnByValue": true }));
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Width of the window, and the medium and colours that the page is told of.
    pub fn show_as(&mut self, width: u32, media: &str, scheme: &str) {
        let size = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "media": media, "features": features }));
    }

    /// Where the first element of a selector lies, after scrolling it into view.
    pub fn area(&mut self, selector: &str) -> Area {
        let script = format!(
            "(() => {{ const e = document.querySelector({selector:?}); e.scrollIntoView({{ block: 'center', behavior: 'instant' }}); \
             const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; }})()"
        );
        let found = self.eval(&script);
        let value = |i: usize| found[i].as_f64().unwrap_or_else(|| panic!("{selector}: {found}"));
        Area { x: value(0), y: value(1), width: value(2), height: value(3) }
    }

    /// What is seen there.
    pub fn picture(&mut self, area: Area) -> image::RgbImage {
        let clip = json!({ "x": area.x, "y": area.y, "width": area.width, "height": area.height, "scale": 1 });
        let scroll = self.eval("scrollY").as_f64().unwrap();
        let mut clip = clip;
        clip["y"] = json!(area.y + scroll);
        let answer = self.call("Page.captureScreenshot", json!({ "clip": clip, "captureBeyondViewport": true }));
        let bytes = decode_base64(answer["data"].as_str().unwrap());
        image::load_from_memory(&bytes).unwrap().to_rgb8()
    }

    /// A key, pressed and released.
    pub fn key(&mut self, key: &str, code: u32) {
        let text = if key == "Enter" { "\r" } else { "" }; // what a button listens to
        for kind in ["keyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// The mouse is pressed in one place, moved to another and released.
    pub fn drag(&mut self, from: (f64, f64), to: (f64, f64)) {
        for (kind, (x, y), buttons) in [("mousePressed", from, 1), ("mouseMoved", to, 1), ("mouseReleased", to, 0)] {
            let event = json!({ "type": kind, "x": x, "y": y, "button": "left", "buttons": buttons, "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// A finger is put down in one place, moved to another and lifted.
    pub fn swipe(&mut self, from: (f64, f64), to: (f64, f64)) {
        let at = |(x, y): (f64, f64)| json!([{ "x": x, "y": y }]);
        for (kind, points) in [("touchStart", at(from)), ("touchMove", at(to)), ("touchEnd", json!([]))] {
            self.call("Input.dispatchTouchEvent", json!({ "type": kind, "touchPoints": points }));
        }
    }

    /// Warnings, errors and exceptions that the page caused, and everything that it asked for from elsewhere.
    pub fn complaints(&self) -> Vec<String> {
        let bad = |event: &&Value| {
            let p = &event["params"];
            match event["method"].as_str().unwrap_or_default() {
                "Runtime.exceptionThrown" => true,
                "Runtime.consoleAPICalled" => ["error", "warning", "assert"].iter().any(|kind| p["type"] == *kind),
                "Log.entryAdded" => ["error", "warning"].iter().any(|level| p["entry"]["level"] == *level),
                "Network.requestWillBeSent" => {
                    let url = p["request"]["url"].as_str().unwrap_or_default();
                    !(url.starts_with("data:") || url.starts_with("file:") && p["type"] == "Document")
                }
                _ => false,
            }
        };
        self.events.iter().filter(bad).map(Value::to_string).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn decode_base64(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let bytes: Vec<u8> = text.bytes().filter(|c| *c != b'=').collect();
    let mut out = Vec::with_capacity(bytes.len() * 3 / 4);
    for chunk in bytes.chunks(4) {
        let bits = chunk.iter().fold(0u32, |bits, c| bits << 6 | u32::from(value(*c))) << (6 * (4 - chunk.len()));
        out.extend_from_slice(&bits.to_be_bytes()[1..chunk.len()]);
    }
    out
}
