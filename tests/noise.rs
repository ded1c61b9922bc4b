//! The noise source against `torch.randn` on the CPU.

mod common;

use common::{facts, goldens};
use erase_concept::diffusion::Generator;

fn assert_equal(what: &str, ours: &[f32], golden: &[f32]) {
    assert_eq!(ours.len(), golden.len());
    for (i, (a, b)) in ours.iter().zip(golden).enumerate() {
        assert!((a - b).abs() <= 1e-6, "{what}[{i}]: {a} is not {b}");
    }
}

#[test]
fn small_sizes_equal_torch_number_for_number() {
    let mut compared = 0;
    for (name, golden) in goldens("noise") {
        let golden: Vec<f32> = golden.to_vec1().unwrap();
        let parts: Vec<u64> = name.split('.').filter_map(|p| p.parse().ok()).collect();
        let [seed, n] = parts[..] else { continue };
        assert_equal(&name, &Generator::new(seed).randn(n as usize), &golden);
        compared += 1;
    }
    assert_eq!(compared, 40);
}

#[test]
fn large_sizes_equal_torch_at_both_ends_and_in_sum() {
    let facts = facts("noise");
    let mut compared = 0;
    for (name, golden) in facts.as_object().unwrap() {
        let (seed, n) = name.split_once('.').unwrap();
        let ours = Generator::new(seed.parse().unwrap()).randn(n.parse().unwrap());
        let list = |key: &str| -> Vec<f32> { serde_json::from_value(golden[key].clone()).unwrap() };
        assert_equal(name, &ours[..8], &list("first"));
        assert_equal(name, &ours[ours.len() - 20..], &list("last"));
        let sums =
            (ours.iter().map(|v| f64::from(*v)).sum::<f64>(), ours.iter().map(|v| f64::from(v.abs())).sum::<f64>());
        assert!((sums.0 - golden["sum"].as_f64().unwrap()).abs() < 1e-2, "{name}");
        assert!((sums.1 - golden["sum_abs"].as_f64().unwrap()).abs() < 1e-2, "{name}");
        compared += 1;
    }
    assert!(compared >= 12, "{compared}");
}

#[test]
fn later_draws_go_on_where_earlier_ones_stopped() {
    let mut generator = Generator::new(7);
    generator.randn(2048);
    let golden: Vec<f32> = goldens("noise")["7.second_draw_of_5_after_2048"].to_vec1().unwrap();
    assert_equal("second draw", &generator.randn(5), &golden);
}

#[test]
fn own_draws_are_in_range_and_fair() {
    let mut generator = Generator::new(1);
    let mut counts = [0; 7];
    (0..7000).for_each(|_| counts[generator.below(7)] += 1);
    assert!(counts.iter().all(|c| (850..1150).contains(c)), "{counts:?}");
    let mut items: Vec<usize> = (0..100).collect();
    generator.shuffle(&mut items);
    assert_ne!(items, (0..100).collect::<Vec<_>>());
    items.sort_unstable();
    assert_eq!(items, (0..100).collect::<Vec<_>>());
}
