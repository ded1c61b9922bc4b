//! Each way in which a server or the way to it can misbehave.

use super::{CDN, Fault, Setup, Told, UNET, contains_all};
use std::fs;
use std::time::{Duration, Instant};

const SIZE: usize = 300_000;

#[test]
fn a_cut_connection_is_gone_on_with_from_where_it_was() {
    for at in [0, 1, 1000, SIZE / 2, SIZE - 1] {
        let setup = Setup::new();
        setup.server.fail(CDN, Fault::Cut(at), 1);
        setup.fetch_right();
        let ranges: Vec<_> =
            setup.asked("GET").into_iter().filter(|(path, _)| path.contains(CDN)).map(|(_, r)| r).collect();
        let expected = if at == 0 { None } else { Some(format!("bytes={at}-")) };
        assert_eq!(ranges, [None, expected], "after {at} bytes");
    }
    // small files, the listing, and several times
    let setup = Setup::new();
    setup.server.fail("/api/", Fault::Cut(10), 1);
    setup.server.fail("model_index.json", Fault::Cut(20), 2);
    setup.server.fail(CDN, Fault::Cut(70_000), 4);
    setup.fetch_right();
}

#[test]
fn a_connection_that_is_always_cut_ends_in_an_error_and_the_next_run_goes_on() {
    let setup = Setup::new();
    setup.server.fail(CDN, Fault::Cut(1000), 100);
    let message = setup.fetch().unwrap_err();
    contains_all(
        &message,
        &[UNET, "could not be fetched", "the connection ended after 5000 of 300000 bytes", "run again"],
    );
    assert!(!setup.blob(UNET).exists());
    assert_eq!(fs::metadata(setup.incomplete(UNET)).unwrap().len(), 5000);
    setup.check_blobs();
    setup.server.heal();
    setup.server.requests();
    setup.fetch_right();
    assert!(setup.asked("GET").contains(&(format!("/cdn/{UNET}"), Some("bytes=5000-".into()))));
    assert!(!setup.incomplete(UNET).exists());
}

#[test]
fn a_part_that_is_not_of_this_file_is_thrown_away() {
    for part in [vec![7; 1000], vec![7; SIZE], vec![7; SIZE + 1]] {
        let setup = Setup::new();
        fs::create_dir_all(setup.repository().join("blobs")).unwrap();
        fs::write(setup.incomplete(UNET), part).unwrap();
        setup.fetch_right();
    }
    // and one that is whole already needs no request
    let setup = Setup::new();
    fs::create_dir_all(setup.repository().join("blobs")).unwrap();
    fs::write(setup.incomplete(UNET), setup.server.file(UNET)).unwrap();
    setup.fetch_right();
    assert!(setup.asked("GET").iter().all(|(path, _)| !path.contains(CDN)));
}

#[test]
fn a_server_that_ignores_the_range_or_sends_another_is_not_believed() {
    for fault in [Fault::IgnoreRange, Fault::OtherRange] {
        let setup = Setup::new();
        setup.server.fail(CDN, Fault::Cut(100_000), 1);
        setup.server.fail(CDN, fault, 1);
        setup.fetch_right();
    }
    // what is counted falls when a part is thrown away
    let setup = Setup::new();
    setup.server.fail(CDN, Fault::Cut(100_000), 1);
    setup.server.fail(CDN, Fault::IgnoreRange, 1);
    let mut told = Told::default();
    setup.check(&setup.fetch_at(None, &mut told).unwrap());
    assert_eq!(told.received.last(), Some(&told.total));
}

#[test]
fn wrong_content_is_fetched_again_once_and_then_refused() {
    for (fault, said) in [
        (Fault::Longer, "it has 300001 bytes, not 300000"),
        (Fault::Shorter, "it has 299999 bytes, not 300000"),
        (Fault::Changed, "its SHA-256 is "),
        (Fault::Page, "it has 19 bytes, not 300000"),
    ] {
        let setup = Setup::new();
        setup.server.fail(CDN, fault.clone(), 1);
        setup.fetch_right();

        let setup = Setup::new();
        setup.server.fail(CDN, fault, 2);
        let message = setup.fetch().unwrap_err();
        contains_all(&message, &[UNET, "is not the file that the Hub lists, twice", said, "Nothing was kept"]);
        assert!(!setup.blob(UNET).exists() && !setup.incomplete(UNET).exists() && !setup.snapshot(UNET).exists());
        setup.check_blobs();
        setup.fetch_right();
    }
    let setup = Setup::new();
    setup.server.fail("unet/config.json", Fault::Changed, 2);
    contains_all(&setup.fetch().unwrap_err(), &["unet/config.json", "its git SHA-1 is "]);
    setup.fetch_right();
}

#[test]
fn refusals_say_what_to_do() {
    let gated: &[_] = &[("X-Error-Code", "GatedRepo"), ("X-Error-Message", "Access is restricted.")];
    let cases: [(&str, u16, _, bool, &[&str]); 10] = [
        (
            "/api/",
            401,
            &[][..],
            false,
            &["no such folder here", "no public model of this name", "spelling", "HF_TOKEN"],
        ),
        ("/api/", 401, &[("X-Error-Message", "Invalid credentials")], true, &["Invalid credentials", "HF_TOKEN"]),
        ("/api/", 403, &[], true, &["access refused", "HF_TOKEN"]),
        ("/api/", 404, &[("X-Error-Code", "RepoNotFound")], true, &["and no such model", "check its spelling"]),
        ("/api/", 404, &[("X-Error-Code", "RevisionNotFound")], false, &["no revision \"main\"", "--revision"]),
        ("resolve", 401, gated, false, &["gated", "Access is restricted.", "/owner/demo", "set HF_TOKEN"]),
        ("resolve", 403, gated, true, &["gated", "accept its licence at http", "token"]),
        ("unet/config", 404, &[("X-Error-Code", "EntryNotFound")], false, &["has no file unet/config.json at 0123456"]),
        ("/api/", 418, &[], false, &["answers 418", "HF_ENDPOINT"]),
        (CDN, 403, &[], false, &["access refused"]),
    ];
    for (path, status, headers, token, parts) in cases {
        let mut setup = Setup::new();
        setup.hub.token = token.then(|| "hf_secret".into());
        setup.server.fail(path, Fault::Status(status, headers), 1);
        let message = setup.fetch().unwrap_err();
        contains_all(&message, &[&["owner/demo"], parts].concat());
        assert!(!message.contains("secret"), "{message}");
        setup.fetch_right();
    }
    let setup = Setup::new();
    let message =
        erase_concept::hub::find_on(&setup.hub, "owner/other", None, &mut Told::default()).unwrap_err().to_string();
    contains_all(&message, &["owner/other: there is no such folder here, and no public model of this name"]);
}

#[test]
fn a_busy_server_is_waited_for_as_it_asks() {
    let setup = Setup::new();
    setup.server.fail("/api/", Fault::Status(429, &[("Retry-After", "1")]), 1);
    setup.server.fail(CDN, Fault::Status(503, &[("Retry-After", "1")]), 1);
    let began = Instant::now();
    setup.fetch_right();
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());

    let setup = Setup::new();
    setup.server.fail("/api/", Fault::Status(429, &[("Retry-After", "3600")]), 1);
    contains_all(&setup.fetch().unwrap_err(), &["answers 429", "come back in 3600 s", "1 attempt", "--model FOLDER"]);
    setup.server.fail(CDN, Fault::Status(503, &[("Retry-After", "3600")]), 1);
    contains_all(&setup.fetch().unwrap_err(), &[UNET, "answers 503", "come back in 3600 s", "run again"]);
    setup.fetch_right();
    setup.server.fail("/api/", Fault::Status(429, &[("Retry-After", "3600")]), 1);
    setup.fetch_right(); // from the cache
}

#[test]
fn a_server_in_trouble_is_asked_again_and_in_the_end_the_cache_serves() {
    for status in [500, 502, 503, 504, 429, 408] {
        let setup = Setup::new();
        for part in ["/api/", "model_index.json", "resolve", CDN] {
            setup.server.fail(part, Fault::Status(status, &[]), 2);
        }
        setup.fetch_right();
    }
    let setup = Setup::new();
    setup.server.fail("/api/", Fault::Status(503, &[]), 100);
    contains_all(&setup.fetch().unwrap_err(), &["answers 503", "5 attempts", "--model FOLDER"]);
    setup.server.heal();
    setup.server.fail(CDN, Fault::Status(500, &[]), 100);
    contains_all(&setup.fetch().unwrap_err(), &[UNET, "answers 500", "5 attempts", "run again"]);
    setup.server.heal();
    setup.fetch_right();
    setup.server.fail("/api/", Fault::Status(500, &[]), 100);
    setup.fetch_right();
}

#[test]
fn a_server_that_falls_silent_is_asked_again() {
    let setup = Setup::new();
    setup.server.fail("/api/", Fault::Stall(0), 1);
    setup.server.fail(CDN, Fault::Stall(1000), 1);
    setup.server.fail(CDN, Fault::Stall(0), 1);
    setup.fetch_right();
    setup.server.requests();

    let setup = Setup::new();
    setup.server.fail(CDN, Fault::Stall(1000), 100);
    let began = Instant::now();
    contains_all(&setup.fetch().unwrap_err(), &[UNET, "the connection ended after 5000 of 300000 bytes", "5 attempts"]);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    setup.check_blobs();
}

#[test]
fn an_answer_that_no_hub_gives_is_said() {
    let setup = Setup::new();
    setup.server.fail("/api/", Fault::Page, 1);
    contains_all(&setup.fetch().unwrap_err(), &["does not answer as the Hub does", "HF_ENDPOINT"]);
    setup.server.fail("model_index.json", Fault::Page, 2);
    contains_all(&setup.fetch().unwrap_err(), &["model_index.json", "is not the file that the Hub lists"]);
    setup.fetch_right();
    // round and round
    let setup = Setup::new();
    setup.server.fail(
        "model_index.json",
        Fault::Status(302, &[("Location", "/owner/demo/resolve/main/model_index.json")]),
        100,
    );
    contains_all(&setup.fetch().unwrap_err(), &["redirected more than 5 times"]);
    let setup = Setup::new();
    setup.server.fail("/api/", Fault::Status(302, &[("Location", "ftp://elsewhere")]), 1);
    contains_all(&setup.fetch().unwrap_err(), &["leads to an address that is not followed"]);
}

#[test]
fn the_token_goes_to_the_endpoint_and_to_nobody_else() {
    let mut setup = Setup::new();
    setup.hub.token = Some("hf_secret".into());
    setup.server.fail("model_index.json", Fault::Cut(3), 1);
    setup.server.fail(
        "/resolve/0123456789abcdef0123456789abcdef01234567/vae",
        Fault::Status(307, &[("Location", "/other/place")]),
        0,
    );
    setup.fetch_right();
    let requests = setup.server.requests();
    let (own, other): (Vec<_>, Vec<_>) =
        requests.into_iter().partition(|request| request.header("host").unwrap().starts_with("127.0.0.1"));
    assert!(own.len() > 5 && other.len() == 3, "{} and {}", own.len(), other.len());
    for request in own {
        assert_eq!(request.header("authorization"), Some("Bearer hf_secret"), "{}", request.path);
        assert_eq!(request.header("accept-encoding"), Some("identity"));
    }
    for request in other {
        assert_eq!(request.header("authorization"), None, "{}", request.path);
    }
}
