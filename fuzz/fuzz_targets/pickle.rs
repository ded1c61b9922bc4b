#![no_main]

#[global_allocator]
static ALLOCATOR: erase_concept::fuzzing::Counting = erase_concept::fuzzing::Counting;

libfuzzer_sys::fuzz_target!(|data: &[u8]| erase_concept::fuzzing::run("pickle", data));
