//! The fuzzers' corpora, and many small damages of each of their files: no panic, no more memory than twice the file (and a
//! fixed slack); and for what would hurt most. What the fuzzers themselves found is in the corpora. (`fuzz/README.md` tells how
//! to run them.)

#![allow(clippy::unwrap_used)]

use erase_concept::counting::Counting;
use erase_concept::diffusion::Generator;
use erase_concept::fuzzing;

#[global_allocator]
static ALLOCATOR: Counting<std::alloc::System> = Counting(std::alloc::System);

/// Damages of each file of a corpus; `FUZZ_DAMAGES` asks for more, `FUZZ_TARGET` for those of one fuzzer alone.
const DAMAGES: usize = 100;

fn damaged(bytes: &[u8], random: &mut Generator) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len().max(1));
        match random.below(5) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            3 if at < bytes.len() => {
                let part = bytes[at..(at + random.below(32)).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            _ => bytes.insert(at.min(bytes.len()), b"\"{}[],:0\n\x80\xff"[random.below(11)]),
        }
    }
    bytes
}

/// One test: the memory that is measured is the process's.
#[test]
fn every_file_and_its_damages_are_read_without_a_panic_and_in_little_memory() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut random = Generator::new(1);
    let variable = |name: &str| std::env::var(name).ok();
    let damages = variable("FUZZ_DAMAGES").map_or(DAMAGES, |number| number.parse().unwrap());
    let target = variable("FUZZ_TARGET");
    for (name, read, slack) in fuzzing::TARGETS {
        if target.as_ref().is_some_and(|target| target != name) {
            continue;
        }
        let mut inputs = 0;
        let mut files: Vec<_> = std::fs::read_dir(root.join(name)).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 3, "{name} has a corpus");
        for file in files {
            let bytes = std::fs::read(&file).unwrap();
            fuzzing::measured(&bytes, read, slack);
            (0..damages).for_each(|_| fuzzing::measured(&damaged(&bytes, &mut random), read, slack));
            inputs += damages;
        }
        println!("{name}: {inputs} inputs");
    }
    let mut too_many = Vec::new();
    for (name, what, bytes) in hostile() {
        let (_, read, slack) = fuzzing::TARGETS.into_iter().find(|(known, ..)| *known == name).unwrap();
        let taken = fuzzing::taken(&bytes, read);
        let over = taken.saturating_sub(2 * bytes.len());
        println!("{name}, {what}: {taken} bytes for {}, {over} of {slack} beyond twice that", bytes.len());
        if over > slack {
            too_many.push(format!("{name}, {what}"));
        }
    }
    assert!(too_many.is_empty(), "more memory than twice the file: {too_many:?}");
    let hungry = |_: &[u8]| drop(std::hint::black_box(vec![1u8; 2 << 20]));
    let taken = std::panic::catch_unwind(|| fuzzing::measured(&[1; 64], hungry, fuzzing::SLACK));
    assert!(taken.is_err(), "memory is measured");
}

type Inputs = Vec<(&'static str, &'static str, Vec<u8>)>;

/// Bytes of a large file.
const LARGE: usize = 500_000;

fn large(part: &str) -> String {
    part.repeat(LARGE / part.len())
}

/// Input that a tree of its values, or a list that grows by copying, would take many times its size for.
fn hostile() -> Inputs {
    let of = |name: &'static str| move |(what, bytes): (&'static str, Vec<u8>)| (name, what, bytes);
    let concepts = concepts().into_iter().map(|(what, text)| (what, text.into_bytes())).map(of("concept"));
    let prompts = prompts().into_iter().map(|(what, text)| (what, text.into_bytes())).map(of("prompts"));
    let headers = headers().into_iter().map(of("safetensors"));
    concepts.chain(headers).chain(prompts).chain(pickles().into_iter().map(of("pickle"))).collect()
}

fn concepts() -> Vec<(&'static str, String)> {
    let count = 4_090; // as many prompts and labels as a concept file may have, but for a few
    let letter = |i: usize| char::from(b"abcdefghijklmnopqrstuvwxyz0123456789"[i % 36]);
    let text = |i: usize| format!("'{}{}{}'", letter(i), letter(i / 36), letter(i / 1296));
    let texts = |count: usize| (0..count).map(|i| text(i) + ",").collect::<String>();
    let file = |forget: &str, anchors: &str, retain: &str, kept: &str, more: &str| {
        format!(
            "name='x'\nkind='style'\nforget=[{forget}]\nanchors=[{anchors}]\nretain=[{retain}]\ndetect.labels=[{more}]\n\
             [verify]\nforget=['forget me']\n{kept}"
        )
    };
    let retained = |retain: &str| file("'a'", "'b'", retain, "retain=[{prompt='kept'}]", "");
    let kept = |kept: &str| file("'a'", "'b'", "'c'", kept, "");
    let in_line: String = (0..count).map(|i| format!("{{prompt={}}},", text(i))).collect();
    let in_tables: String = (0..count).map(|i| format!("[[verify.retain]]\nprompt={}\n", text(i))).collect();
    let words = large("b ");
    vec![
        ("headers", large("[a]\n")),
        ("headers that are known", large("[[verify.retain]]\n")),
        ("brackets", large("a=[")),
        ("numbers", format!("forget=[{}]", large("1,"))),
        ("lists in lists", format!("forget=[{}", large("["))),
        ("tables in tables", format!("verify={}", large("{verify="))),
        ("dotted keys", format!("{}=1", large("verify."))),
        ("a long key", format!("{}=1", large("k"))),
        ("a long key with escapes", format!("\"{}\"=1", large("\\u0061"))),
        ("texts of a letter", retained(&large("'a',"))),
        ("texts of three letters", retained(&texts(count))),
        ("pairs", file(&texts(count / 2), &"'-',".repeat(count / 2), "'-b'", "retain=[{prompt='kept'}]", "")),
        ("labels", file("'a'", "'b'", "'c'", "retain=[{prompt='kept'}]", &"'a',".repeat(count))),
        ("more labels", file("'a'", "'b'", "'c'", "retain=[{prompt='kept'}]", &large("'a',"))),
        ("kept", kept(&format!("retain=[{in_line}]"))),
        ("kept in tables", kept(&in_tables)),
        ("kept by another key", kept(&in_tables.replace("retain", "\"ret\\u0061in\""))),
        ("labels of what is kept", kept(&format!("retain=[{{prompt='d',labels=[{}]}}]", "'a',".repeat(count)))),
        ("a long text", retained(&format!("\"\\n{}\\n\"", large("c")))),
        ("a text of escapes", retained(&format!("\"{}\"", large("\\n")))),
        ("a text of words", retained(&format!("'{words}'"))),
        ("a long text twice", retained(&format!("'{0}','{0}'", &words[..LARGE / 3]))),
        ("an unknown kind", format!("kind='{}'", large("k"))),
        ("an open text", format!("name=\"{}", large("\\n"))),
        ("a comment", format!("#{}", large("a"))),
        ("lines", large("\n")),
    ]
}

fn headers() -> Vec<(&'static str, Vec<u8>)> {
    let header = |json: String| [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
    let many = |count: usize, entry: &dyn Fn(usize) -> String| (0..count).map(entry).collect::<Vec<_>>().join(",");
    let tensor = |i: usize| format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[0,0,0,0,0,0,0,0],\"data_offsets\":[0,0]}}");
    let metadata = |i: usize| format!("\"{i}\":\"\"");
    vec![
        // the crate that reads headers takes 27 times that
        ("lists", header(format!("{{\"a\":[{}0]}}", "[],".repeat(5_000_000)))),
        ("tensors", header(format!("{{{}}}", many(4_096, &tensor)))),
        ("more tensors", header(format!("{{{}}}", many(20_000, &tensor)))),
        ("tensors and as many bytes as they need", {
            [header(format!("{{{}}}", many(19_000, &tensor))), vec![0; 15_000 * 1_024]].concat()
        }),
        ("metadata", header(format!("{{\"__metadata__\":{{{}}}}}", many(4_096, &metadata)))),
        ("a long text", header(format!("{{\"__metadata__\":{{\"a\":\"\\n{}\"}}}}", large("b")))),
    ]
}

fn prompts() -> Vec<(&'static str, String)> {
    let columns: String = (0..200).map(|i| format!(",{i}{}", "n".repeat(600))).collect();
    vec![
        ("commas", large(",")),
        ("commas in a row", format!("prompt\n{}", large(","))),
        ("columns", format!("prompt{columns}\n{}", large(&format!("p{}\n", ",1".repeat(200))))),
        ("a long first line", format!("prompt,{}", large("n"))),
        ("a long row", format!("prompt\n{}", large("p"))),
        ("an open quote", format!("prompt,seed\na,\"{}", large("p\n"))),
        ("a strange seed", format!("prompt,seed\na,{}", "\u{7f}".repeat(100_000))),
        ("a strange name", format!("prompt,id\na,{}", "\u{7f}".repeat(100_000))),
        ("rows", format!("prompt\n{}", large("p\n"))),
        ("lines", format!("prompt{}", large("\n"))),
    ]
}

fn pickles() -> Vec<(&'static str, Vec<u8>)> {
    let mut doubling = b"NN\x86q\x00".to_vec();
    (0..200).for_each(|i: u8| doubling.extend([b'h', i, b'h', i, 0x86, b'q', i + 1]));
    let stored: Vec<u8> = (0..60_000u32).flat_map(|i| [&b"Nr"[..], &i.to_le_bytes()].concat()).collect();
    let names: String = (0..10_000).map(|i| format!("X\u{5}\0\0\0{i:05}h\0")).collect();
    let tensor =
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000\
        X\x03\x00\x00\x00cpuK\x01tQK\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRq\x00";
    let tensors = [&tensor[..], b"}(", names.as_bytes(), b"u."].concat();
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("a/data.pkl", &tensors[..]), ("a/data/0", &[0; 4])] {
        archive.start_file(name, options).unwrap();
        std::io::Write::write_all(&mut archive, bytes).unwrap();
    }
    let archive = archive.finish().unwrap().into_inner();
    let mut members = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    (0..60_000).for_each(|i| members.start_file(i.to_string(), options).unwrap());
    let members = members.finish().unwrap().into_inner();
    assert_eq!(erase_concept::checkpoint::single_file::read_pickle(&archive), Ok(10_000));
    vec![
        ("nothing", b"N".repeat(LARGE)),
        ("lists", b"]".repeat(LARGE)),
        ("tuples in tuples", [&b"N"[..], &b"\x85".repeat(LARGE)].concat()),
        ("entries", [&b"}"[..], &b"NNs".repeat(LARGE / 3), b"."].concat()),
        ("what is there twice", [&doubling[..], b"."].concat()),
        ("stored values", [&stored[..], b"."].concat()),
        ("tensors", tensors),
        ("tensors in an archive", archive),
        ("members of an archive", members),
    ]
}
