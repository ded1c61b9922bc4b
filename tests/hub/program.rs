//! The program itself, with the demo on a local Hub.

use super::server::{COMMIT, Fault, Server, files_of};
use super::{common, contains_all};
use assert_cmd::Command;
use common::tiny::{QUICK, tree};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

const SAMPLE: [&str; 7] = ["sample", "--prompt", "a red star", "--steps", "2", "--seed", "3"];
const UNET: &str = "/cdn/unet/";

/// A folder and a server that has the demo as `owner/demo`, with a safety checker that its index names.
struct World {
    server: Server,
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let mut files = files_of(&common::repository("weights/demo"));
        let index = String::from_utf8(files["model_index.json"].clone()).unwrap();
        let (from, to) = ("\"safety_checker\": [\n    null,\n    null", "\"safety_checker\": [\n    \"a\",\n    \"B\"");
        assert!(index.contains(from), "{index}");
        files.insert("model_index.json".into(), index.replace(from, to).into());
        files.insert("safety_checker/model.safetensors".into(), vec![1; 100]);
        Self { server: Server::new(files), folder: tempfile::tempdir().unwrap() }
    }

    fn environment(&self) -> [(&'static str, String); 4] {
        let home = self.folder.path().join("home").display().to_string();
        let endpoint = self.server.endpoint();
        [("HF_HOME", home.clone()), ("HF_ENDPOINT", endpoint), ("HOME", home), ("HF_HUB_DOWNLOAD_TIMEOUT", "1".into())]
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::cargo_bin("erase-concept").unwrap();
        for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH"] {
            command.env_remove(name);
        }
        command.current_dir(self.folder.path()).envs(self.environment()).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> String {
        String::from_utf8(self.command(args).assert().code(0).get_output().stderr.clone()).unwrap()
    }

    fn refused(&self, args: &[&str]) -> String {
        String::from_utf8(self.command(args).assert().code(2).get_output().stderr.clone()).unwrap()
    }

    fn read(&self, rel: &str) -> Vec<u8> {
        fs::read(self.folder.path().join(rel)).unwrap()
    }

    fn requests(&self) -> usize {
        self.server.requests().len()
    }
}

#[test]
fn a_model_of_the_hub_gives_the_same_pictures_as_the_one_at_home() {
    let world = World::new();
    // a folder of the same files and the same name
    for rel in ["scheduler/scheduler_config.json", "model_index.json"].iter().map(ToString::to_string).chain(
        tree(&common::repository("weights/demo")).into_iter().filter(|rel| {
            ["text_encoder/", "tokenizer/", "unet/", "vae/"].iter().any(|folder| rel.starts_with(folder))
        }),
    ) {
        let path = world.folder.path().join("at/demo").join(&rel);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, world.server.file(&rel)).unwrap();
    }
    let hub = world.run(&[&SAMPLE[..], &["--model", "owner/demo", "--output", "hub"]].concat());
    contains_all(&hub, &["fetching owner/demo (", &format!("model owner/demo at commit {COMMIT} (main)")]);
    assert!(world.requests() > 10);
    world.run(&[&SAMPLE[..], &["--model", "at/demo", "--output", "folder"]].concat());
    world.run(&[&SAMPLE[..], &["--model", "demo", "--output", "demo"]].concat());
    assert_eq!(world.requests(), 0, "a folder or the demo asks nobody");
    assert!(world.read("hub/00000_3.png") == world.read("folder/00000_3.png"));
    let pixels = |rel: &str| image::load_from_memory(&world.read(rel)).unwrap().to_rgb8().into_raw();
    assert!(pixels("hub/00000_3.png") == pixels("demo/00000_3.png"));

    // again, with nothing to fetch; then with HF_HUB_OFFLINE
    let again = world.run(&[&SAMPLE[..], &["--model", "owner/demo", "--output", "again"]].concat());
    assert!(!again.contains("fetching") && world.requests() == 1, "{again}");
    let args = [&SAMPLE[..], &["--model", "owner/demo", "--output", "offline"]].concat();
    world.command(&args).env("HF_HUB_OFFLINE", "yes").assert().code(0);
    assert_eq!(world.requests(), 0);
    assert!(world.read("hub/00000_3.png") == world.read("offline/00000_3.png"));
}

#[test]
fn the_erase_job_records_the_commit_and_says_what_was_not_fetched() {
    let world = World::new();
    let job = [&["--model", "owner/demo", "--concept", "star", "--output", "out", "--json"], &QUICK[..]].concat();
    let output = world.command(&job).assert().code(0).get_output().stdout.clone();
    let events: Vec<Value> =
        String::from_utf8(output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let has = |kind: &str| events.iter().any(|event| event["event"] == kind);
    assert!(has("transfer") && has("received"));
    let note = |part: &str| events.iter().any(|e| e["event"] == "note" && e["text"].as_str().unwrap().contains(part));
    assert!(note(COMMIT) && note("safety_checker was not there") && !note("feature_extractor"));
    let report: Value = serde_json::from_slice(&world.read("out/report.json")).unwrap();
    assert_eq!(report["hub"], serde_json::json!({ "repo": "owner/demo", "commit": COMMIT }));
    contains_all(report["command"].as_str().unwrap(), &["--model owner/demo", &format!("--revision {COMMIT}")]);
    let html = String::from_utf8(world.read("out/report.html")).unwrap();
    contains_all(&html, &[&format!("owner/demo on the Hugging Face Hub, commit {COMMIT}")]);
    // null in place of what was not fetched, and all else as it was
    let mut expected: Value = serde_json::from_slice(world.server.file("model_index.json")).unwrap();
    expected["safety_checker"] = serde_json::json!([null, null]);
    let index = String::from_utf8(world.read("out/model_index.json")).unwrap();
    assert_eq!(index, format!("{expected:#}\n"));
    assert!(!world.folder.path().join("out/safety_checker").exists());

    let dry = ["--model", "owner/demo", "--concept", "star", "--dry-run", "--json", "--revision", COMMIT, "--offline"];
    let output = world.command(&dry).assert().code(0).get_output().stdout.clone();
    let last = String::from_utf8(output).unwrap().lines().last().unwrap().to_string();
    assert_eq!(serde_json::from_str::<Value>(&last).unwrap()["result"]["hub"]["commit"], COMMIT);
}

#[test]
fn an_audit_records_the_commits_of_its_models() {
    let world = World::new();
    fs::write(world.folder.path().join("set.csv"), "prompt\na red star\n").unwrap();
    let audit = ["audit", "--model", "owner/demo", "--prompts", "set.csv", "--steps", "1", "--output", "out"];
    world.run(&[&audit[..], &["--detector", "demo/classifier"]].concat());
    let manifest = String::from_utf8(world.read("out/manifest.jsonl")).unwrap();
    let header: Value = serde_json::from_str(manifest.lines().next().unwrap()).unwrap();
    let hub = serde_json::json!({ "repo": "owner/demo", "commit": COMMIT });
    assert_eq!(header["models"][0]["hub"], hub);
    let summary: Value = serde_json::from_slice(&world.read("out/audit.json")).unwrap();
    assert_eq!((&summary["models"][0]["hub"], &summary["models"][0]["pictures"]), (&hub, &1.into()));
    assert!(String::from_utf8(world.read("out/report.html")).unwrap().contains(COMMIT));
    // --revision is about the models: the detector is not looked for at that commit
    world.run(&[&audit[..], &["--detector", "demo/classifier", "--revision", COMMIT]].concat());
}

#[test]
fn refusals_and_flags() {
    let world = World::new();
    let sample = |more: &[&str]| world.refused(&[&SAMPLE[..], more].concat());
    contains_all(
        &sample(&["--model", "owner/other"]),
        &["owner/other: there is no such folder here, and no public model", "spelling"],
    );
    contains_all(&sample(&["--model", "owner/demo", "--revision", "v9"]), &["no revision \"v9\""]);
    contains_all(&sample(&["--model", "demo", "--revision", "v9"]), &["--revision v9 is for models on the Hub"]);
    let offline = ["owner/demo: nothing is fetched (offline)", "--model FOLDER", "--model demo"];
    contains_all(&sample(&["--model", "owner/demo", "--offline"]), &offline);
    contains_all(&world.refused(&["bench", "--model", "owner/demo", "--offline"]), &offline);
    let mut command = world.command(&[&SAMPLE[..], &["--model", "owner/demo"]].concat());
    let stderr = command.env("HF_ENDPOINT", "nonsense").assert().code(2).get_output().stderr.clone();
    contains_all(&String::from_utf8(stderr).unwrap(), &["HF_ENDPOINT is \"nonsense\""]);
    let left = tree(world.folder.path());
    assert!(left.is_empty(), "{left:?}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_a_part_with_which_the_next_run_goes_on() {
    let world = World::new();
    world.server.fail(UNET, Fault::Stall(1_000_000), 100);
    let args = [&SAMPLE[..], &["--model", "owner/demo", "--output", "out", "--json"]].concat();
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("erase-concept"));
    command.current_dir(world.folder.path()).envs(world.environment()).env_remove("HF_HUB_CACHE").args(&args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let large = |line: &String| {
        let event: Value = serde_json::from_str(line).unwrap();
        event["event"] == "received" && event["bytes"].as_u64().unwrap() > 2_000_000 // the text encoder, and some of the UNet
    };
    assert!(lines.map_while(Result::ok).any(|line| large(&line)));
    let signal = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{stderr}");
    let blobs = world.folder.path().join("home/hub/models--owner--demo/blobs");
    let parts: Vec<_> = tree(&blobs).into_iter().filter(|name| name.ends_with(".incomplete")).collect();
    assert_eq!(parts.len(), 1);
    let length = fs::metadata(blobs.join(&parts[0])).unwrap().len();
    assert!(length >= 1_000_000, "{length}");
    assert!(!world.folder.path().join("out").exists());

    world.server.heal();
    world.server.requests();
    world.run(&args);
    let ranges: Vec<_> = world.server.requests().into_iter().filter(|request| request.path.contains(UNET)).collect();
    assert_eq!(ranges[0].header("range"), Some(format!("bytes={length}-").as_str()));
    assert!(!blobs.join(&parts[0]).exists());
}

/// The kernel ends a process that opens a socket: nothing that the program says of itself is believed.
#[cfg(target_os = "linux")]
#[test]
fn offline_opens_no_socket_at_all() {
    use std::os::unix::process::{CommandExt, ExitStatusExt};

    let world = World::new();
    let without_sockets = |args: &[&str], environment: &[(&str, &str)]| {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("erase-concept"));
        command.current_dir(world.folder.path()).envs(world.environment()).env_remove("HF_HUB_CACHE").args(args);
        command.envs(environment.iter().copied());
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(forbid_sockets) };
        command.output().unwrap()
    };
    let sample = |output: &'static str| [&SAMPLE[..], &["--model", "owner/demo", "--output", output]].concat();
    // it works: with the network allowed the program is killed at once
    let online = without_sockets(&sample("a"), &[]);
    assert_eq!(online.status.signal(), Some(libc::SIGSYS), "{online:?}");

    // an empty cache
    let refused = without_sockets(&[&sample("b")[..], &["--offline"]].concat(), &[]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    contains_all(&String::from_utf8_lossy(&refused.stderr), &["nothing is fetched (offline)"]);
    // a full one
    world.run(&sample("c"));
    let flag = without_sockets(&[&sample("d")[..], &["--offline"]].concat(), &[("HF_TOKEN", "hf_x")]);
    assert_eq!(flag.status.code(), Some(0), "{flag:?}");
    let variable = without_sockets(&sample("e"), &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(variable.status.code(), Some(0), "{variable:?}");
    let job = [&["--model", "owner/demo", "--offline", "--concept", "star", "--output", "f"], &QUICK[..]].concat();
    let job = without_sockets(&job, &[]);
    assert_eq!(job.status.code(), Some(0), "{job:?}");
    assert!(world.read("c/00000_3.png") == world.read("d/00000_3.png"));
    // a damaged one
    let snapshot = world.folder.path().join("home/hub/models--owner--demo/snapshots").join(COMMIT);
    fs::write(snapshot.join("unet/config.json"), "{}").unwrap();
    let damaged = without_sockets(&[&sample("g")[..], &["--offline"]].concat(), &[]);
    assert_eq!(damaged.status.code(), Some(2), "{damaged:?}");
    contains_all(&String::from_utf8_lossy(&damaged.stderr), &["unet/config.json", "is damaged"]);
}

/// A seccomp filter that kills the process at `socket`.
#[cfg(target_os = "linux")]
fn forbid_sockets() -> std::io::Result<()> {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter, sock_fprog};

    let statement = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        statement(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0), // the number of the call
        statement(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, libc::SYS_socket as u32),
        statement(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        statement(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the filter lives until the calls return.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) != 0
    };
    if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
