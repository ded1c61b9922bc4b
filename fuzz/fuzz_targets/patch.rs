#![no_main]

use erase_concept::counting::Counting;
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: Counting<System> = Counting(System);

libfuzzer_sys::fuzz_target!(|data: &[u8]| erase_concept::fuzzing::run("patch", data));
