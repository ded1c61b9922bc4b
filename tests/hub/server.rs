//! A small server that speaks as much of the Hub's protocol as a download needs, and misbehaves on request.

use serde_json::{Value, json};
use sha1::Digest as _;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How an answer goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// Nothing comes after so many bytes of the body.
    Stall(usize),
    /// The whole file, whatever part was asked for.
    IgnoreRange,
    /// Another part than was asked for.
    OtherRange,
    /// A byte more at the end, and a Content-Length that says so.
    Longer,
    /// A byte less.
    Shorter,
    /// The right length, but other content.
    Changed,
    /// A page instead of the file.
    Page,
    /// This status and these headers.
    Status(u16, &'static [(&'static str, &'static str)]),
}

/// A request that came.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What the server has and does.
#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: Mutex<Vec<(String, Fault, usize)>>,
    requests: Mutex<Vec<Request>>,
    /// Whether the listing tells sizes and hashes, as the Hub's does and a mirror's may not.
    tells_blobs: AtomicBool,
    /// Whether a file's address tells its etag.
    tells_etags: AtomicBool,
    port: u16,
    stopped: AtomicBool,
}

/// A server of one model, `owner/demo`. Large files are redirected to another host.
pub struct Server(Arc<State>);

impl Server {
    /// Serves these files.
    pub fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tells_blobs, tells_etags) = (AtomicBool::new(true), AtomicBool::new(true));
        let state = Arc::new(State { files, port, tells_blobs, tells_etags, ..State::default() });
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let state = shared.clone();
                std::thread::spawn(move || drop(state.serve(&stream)));
            }
        });
        Self(state)
    }

    /// Where it is. Its other host, for large files, is `localhost` with the same port.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.port)
    }

    /// Makes the next `times` answers to paths that contain `part` go wrong.
    pub fn fail(&self, part: &str, fault: Fault, times: usize) {
        self.0.faults.lock().unwrap().push((part.into(), fault, times));
    }

    pub fn heal(&self) {
        self.0.faults.lock().unwrap().clear();
    }

    pub fn hide_blobs(&self) {
        self.0.tells_blobs.store(false, Ordering::SeqCst);
    }

    pub fn hide_etags(&self) {
        self.0.tells_etags.store(false, Ordering::SeqCst);
    }

    /// What was asked for since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.0.requests.lock().unwrap())
    }

    pub fn file(&self, rel: &str) -> &[u8] {
        &self.0.files[rel]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.0.port)); // wakes the listener
    }
}

/// The files of a folder, by relative path.
pub fn files_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = crate::common::tiny::tree(folder).into_iter().filter(|rel| folder.join(rel).is_file());
    files.map(|rel| (rel.clone(), std::fs::read(folder.join(rel)).unwrap())).collect()
}

/// The hash by which the Hub knows content, and whether it lies in its store of large files.
pub fn etag(rel: &str, content: &[u8]) -> (String, bool) {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if rel.ends_with(".safetensors") || rel.ends_with(".bin") {
        return (hex(&sha2::Sha256::digest(content)), true);
    }
    let git = [format!("blob {}\0", content.len()).as_bytes(), content].concat();
    (hex(&sha1::Sha1::digest(git)), false)
}

impl State {
    fn serve(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let mut words = first.split(' ').map(String::from);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut request = Request { method, path, ..Request::default() };
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else { break };
            request.headers.insert(name.to_lowercase(), value.into());
        }
        self.requests.lock().unwrap().push(request.clone());
        let fault = self.fault(&request.path);
        let head = request.method == "HEAD";
        let (status, headers, body, wait) = self.answer(&request, fault.as_ref());
        let mut text = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name == "Content-Length") {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
        stream.write_all(format!("{text}\r\n").as_bytes())?;
        if !head {
            stream.write_all(&body)?;
        }
        stream.flush()?;
        while wait && !self.stopped.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn fault(&self, path: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let (_, fault, times) =
            faults.iter_mut().find(|(part, _, times)| path.contains(part.as_str()) && *times > 0)?;
        *times -= 1;
        Some(fault.clone())
    }

    /// Status, headers, body, and whether the connection then stays open.
    fn answer(&self, request: &Request, fault: Option<&Fault>) -> (u16, Vec<(String, String)>, Vec<u8>, bool) {
        let plain = |status: u16, code: &str| (status, owned(&[("X-Error-Code", code)]), Vec::new(), false);
        match fault {
            Some(Fault::Status(status, headers)) => return (*status, owned(headers), b"no".to_vec(), false),
            Some(Fault::Page) => return (200, Vec::new(), b"<html>log in</html>".to_vec(), false),
            _ => {}
        }
        let path = request.path.split('?').next().unwrap_or_default();
        let revisions = ["main", COMMIT, "v1%2Frc"];
        if let Some(rest) = path.strip_prefix("/api/models/owner/demo") {
            let (kind, revision) = rest.trim_start_matches('/').split_once('/').unwrap_or(("", "main"));
            if !revisions.contains(&revision) {
                return plain(404, "RevisionNotFound");
            }
            let listing = if kind == "tree" { self.tree() } else { self.listing() };
            return faulty(fault, listing.to_string().into_bytes(), 200, Vec::new());
        }
        if let Some(rest) = path.strip_prefix("/owner/demo/resolve/") {
            let (revision, rel) = rest.split_once('/').unwrap_or_default();
            let Some(content) = self.files.get(rel).filter(|_| revisions.contains(&revision)) else {
                return plain(404, "EntryNotFound");
            };
            let (etag, large) = etag(rel, content);
            let mut headers = owned(&[("X-Repo-Commit", COMMIT)]);
            if !large {
                if self.tells_etags.load(Ordering::SeqCst) {
                    headers.push(("ETag".into(), format!("\"{etag}\"")));
                }
                return self.content(request, content, fault, headers);
            }
            headers.push(("Location".into(), format!("http://localhost:{}/cdn/{rel}", self.port)));
            if self.tells_etags.load(Ordering::SeqCst) {
                headers.push(("X-Linked-Etag".into(), format!("\"{etag}\"")));
                headers.push(("X-Linked-Size".into(), content.len().to_string()));
            }
            return (302, headers, Vec::new(), false);
        }
        match path.strip_prefix("/cdn/").and_then(|rel| self.files.get(rel)) {
            Some(content) => self.content(request, content, fault, owned(&[("ETag", "\"not-a-hash-3\"")])),
            None => plain(if path.starts_with("/api/models") { 401 } else { 404 }, "RepoNotFound"),
        }
    }

    fn content(
        &self,
        request: &Request,
        content: &[u8],
        fault: Option<&Fault>,
        mut headers: Vec<(String, String)>,
    ) -> (u16, Vec<(String, String)>, Vec<u8>, bool) {
        let start =
            request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        match (start, fault) {
            (Some(start), _) if start >= content.len() => {
                (416, owned(&[("Content-Range", &format!("bytes */{}", content.len()))]), Vec::new(), false)
            }
            (Some(_), Some(Fault::IgnoreRange)) | (None, _) => faulty(fault, content.to_vec(), 200, headers),
            (Some(start), fault) => {
                let start = if matches!(fault, Some(Fault::OtherRange)) { start / 2 } else { start };
                let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
                headers.push(("Content-Range".into(), range));
                faulty(fault, content[start..].to_vec(), 206, headers)
            }
        }
    }

    fn listing(&self) -> Value {
        let file = |(rel, content): (&String, &Vec<u8>)| {
            let (etag, large) = etag(rel, content);
            match (self.tells_blobs.load(Ordering::SeqCst), large) {
                (false, _) => json!({ "rfilename": rel }),
                (true, false) => json!({ "rfilename": rel, "size": content.len(), "blobId": etag }),
                (true, true) => json!({
                    "rfilename": rel,
                    "size": content.len(),
                    "blobId": "f".repeat(40), // of the pointer
                    "lfs": { "sha256": etag, "size": content.len(), "pointerSize": 134 },
                }),
            }
        };
        json!({ "id": "owner/demo", "sha": COMMIT, "siblings": self.files.iter().map(file).collect::<Vec<_>>() })
    }

    /// As Python asks for it.
    fn tree(&self) -> Value {
        let file = |(rel, content): (&String, &Vec<u8>)| {
            let (etag, large) = etag(rel, content);
            let oid = if large { "f".repeat(40) } else { etag.clone() };
            let mut file = json!({ "type": "file", "path": rel, "size": content.len(), "oid": oid });
            if large {
                file["lfs"] = json!({ "oid": etag, "size": content.len(), "pointerSize": 134 });
            }
            file
        };
        self.files.iter().map(file).collect()
    }
}

/// An answer with what the fault does to its body.
fn faulty(
    fault: Option<&Fault>,
    mut body: Vec<u8>,
    status: u16,
    mut headers: Vec<(String, String)>,
) -> (u16, Vec<(String, String)>, Vec<u8>, bool) {
    let mut stays = false;
    match fault {
        Some(Fault::Cut(at) | Fault::Stall(at)) => {
            headers.push(("Content-Length".into(), body.len().to_string()));
            body.truncate(*at);
            stays = matches!(fault, Some(Fault::Stall(_)));
        }
        Some(Fault::Longer) => body.push(b'x'),
        Some(Fault::Shorter) => drop(body.pop()),
        Some(Fault::Changed) => {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        _ => {}
    }
    (status, headers, body, stays)
}

fn owned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}
