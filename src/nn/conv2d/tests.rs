//! Against the composite, in every way.

use super::*;
use crate::nn::kernels::testing::{compare, compare_halved};

fn check(batch: usize, inputs: usize, outputs: usize, size: [usize; 2], kernel: usize, stride: usize, padding: usize) {
    let x = [batch, inputs, size[0], size[1]];
    let w = [outputs, inputs, kernel, kernel];
    let name = format!("conv2d k{kernel} s{stride} p{padding}");
    compare(&name, &[&x, &w, &[outputs]], 5e-6, &|t| conv2d(&t[0], &t[1], Some(&t[2]), stride, padding));
    compare_halved(&name, &[&x, &w, &[outputs]], &|t| conv2d(&t[0], &t[1], Some(&t[2]), stride, padding));
}

#[test]
fn three_by_three_of_stride_one_on_odd_sizes() {
    check(1, 1, 1, [1, 1], 3, 1, 1);
    check(2, 3, 5, [5, 7], 3, 1, 1);
    check(5, 4, 9, [4, 4], 3, 1, 1);
    check(1, 16, 16, [16, 16], 3, 1, 1); // as many channels as rows and columns
    check(2, 20, 24, [9, 33], 3, 1, 1);
    check(1, 130, 10, [6, 50], 3, 1, 1); // more channels than one block
    check(1, 130, 70, [6, 50], 3, 1, 1);
    check(9, 33, 17, [5, 11], 3, 1, 1); // tiles that reach past the map
    check(2, 16, 40, [50, 61], 3, 1, 1); // more tiles than one task
    check(2, 272, 250, [9, 15], 3, 1, 1); // a large kernel
    check(2, 40, 3, [128, 130], 3, 1, 1); // weight gradients of some inputs after others
    check(9, 50, 4, [16, 16], 3, 1, 1); // few outputs
    check(1, 70, 8, [70, 40], 3, 1, 1); // the same in several bands
    check(2, 16, 1, [3, 1], 3, 1, 1); // one column
}

#[test]
fn large_maps_are_unfolded_in_bands() {
    // fewer outputs than Winograd takes, and columns of more than 2^24 elements
    let geometry =
        |stride| Geometry { batch: 1, inputs: 64, outputs: 3, height: 190, width: 301, kernel: 3, stride, padding: 1 };
    let values = |n: usize, seed: u64| crate::diffusion::Generator::new(seed).randn(n);
    for g in [geometry(1), Geometry { inputs: 256, ..geometry(2) }] {
        let (x, w) = (values(g.in_sample(), 1), values(g.outputs * g.taps(), 2));
        let bias = values(3, 3);
        assert!(g.taps() * g.out_pixels() > 1 << 24);
        let mut y = vec![f32::NAN; g.outputs * g.out_pixels()];
        columns::forward(&g, &x, w.as_slice().into(), None, Some(&bias), &mut y);
        for (o, oy, ox) in
            [(0, 0, 0), (1, 1, 7), (2, g.out_height() - 1, g.out_width() - 1), (0, g.out_height() / 2, 3)]
        {
            let mut sum = f64::from(bias[o]);
            for (c, ky, kx) in (0..g.inputs).flat_map(|c| (0..9).map(move |tap| (c, tap / 3, tap % 3))) {
                let (row, column) = (oy * g.stride + ky, ox * g.stride + kx);
                if (1..=g.height).contains(&row) && (1..=g.width).contains(&column) {
                    let value = x[(c * g.height + row - 1) * g.width + column - 1];
                    sum += f64::from(value) * f64::from(w[o * g.taps() + c * 9 + ky * 3 + kx]);
                }
            }
            let found = f64::from(y[(o * g.out_height() + oy) * g.out_width() + ox]);
            assert!((found - sum).abs() < 1e-3, "({o}, {oy}, {ox}): {found}, not {sum}");
        }
        assert!(y.iter().all(|y| y.is_finite()));
    }
}

#[test]
fn weight_gradients_of_maps_whose_columns_are_larger_than_a_band() {
    let g = Geometry { batch: 1, inputs: 17, outputs: 1, height: 500, width: 480, kernel: 3, stride: 1, padding: 1 };
    let (mut dw, pixels) = (vec![f32::NAN; 17 * 9], 500 * 480);
    columns::weight_gradient(&g, &vec![1.0; 17 * pixels], &vec![1.0; pixels], &mut dw);
    for (tap, found) in dw.iter().enumerate() {
        // a tap to a side does not meet the first or last row or column
        let (rows, columns) = (500 - usize::from(tap % 9 / 3 != 1), 480 - usize::from(tap % 3 != 1));
        assert_eq!(*found, (rows * columns) as f32, "tap {tap}");
    }
}

#[test]
fn every_other_geometry() {
    check(2, 3, 4, [7, 5], 3, 2, 1);
    check(2, 3, 4, [8, 6], 3, 2, 1);
    check(1, 3, 4, [9, 7], 3, 2, 0);
    check(2, 40, 4, [8, 6], 3, 2, 1); // folded by several tasks
    check(9, 3, 4, [8, 6], 3, 2, 1); // a sample a task
    check(9, 20, 5, [5, 3], 1, 1, 0);
    check(2, 6, 5, [5, 3], 1, 1, 0);
    check(3, 6, 5, [5, 7], 1, 2, 0); // candle cannot, where the parities of height and width differ
    check(1, 3, 4, [15, 11], 7, 2, 3);
    check(2, 3, 4, [6, 7], 3, 1, 0);
    check(2, 3, 4, [4, 5], 5, 1, 2);
    check(1, 2, 3, [3, 1], 5, 1, 2); // taps that meet nothing of a row
}

/// Only one way is taken on a machine for a size; here all that it has are held against the columns.
#[test]
fn every_way_gives_the_same() {
    let values = |n: usize, seed: u64| crate::diffusion::Generator::new(seed).randn(n);
    let mut ways = vec![Way::Winograd(Form::F2), Way::Winograd(Form::F4), Way::Taps];
    ways.extend(direct::available().then_some(Way::Direct));
    let small = [(1, 16, 16, 8, 8), (3, 33, 17, 5, 11), (2, 20, 40, 9, 33), (1, 300, 24, 12, 10), (9, 18, 16, 4, 4)];
    let large = [(3, 270, 250, 5, 11), (2, 260, 256, 8, 8)]; // whose kernels' points are made on the way
    for (batch, inputs, outputs, height, width) in small.into_iter().chain(large) {
        let geometry = Geometry { batch, inputs, outputs, height, width, kernel: 3, stride: 1, padding: 1 };
        let (pixels, device) = (height * width, candle_core::Device::Cpu);
        let tensor = |shape: &[usize], seed| {
            let values = values(shape.iter().product(), seed);
            candle_core::Var::from_vec(values, shape, &device).unwrap().into_inner()
        };
        let (x, w) = (tensor(&[batch, inputs, height, width], 1), tensor(&[outputs, inputs, 3, 3], 2));
        let dy = tensor(&[batch, outputs, height, width], 3).detach();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let all = |way: Way| {
            let op = Convolution { geometry, way, points: None };
            let y = match op.forward(&flat(&x), flat(&w).as_slice().into(), Some(&values(outputs, 4))) {
                (CpuStorage::F32(y), _) => y,
                other => panic!("{other:?}"),
            };
            assert_eq!(y.len(), batch * outputs * pixels);
            let (dx, dw) = op.backward(&x, &w, &dy).unwrap();
            [y, flat(&dx.unwrap()), flat(&dw.unwrap())]
        };
        let columns = all(Way::Columns);
        for way in &ways {
            for (what, (found, expected)) in ["y", "dx", "dw"].iter().zip(all(*way).iter().zip(&columns)) {
                let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
                let off = found.iter().zip(expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(off <= 3e-6 * largest, "{way:?}, {what} of {geometry:?}: {off} of {largest}");
            }
        }
    }
}

#[test]
fn works_without_bias_and_on_views() {
    compare("conv2d", &[&[2, 5, 6, 3], &[4, 3, 3, 3]], 5e-6, &|t| {
        conv2d(&t[0].permute((0, 3, 1, 2))?, &t[1], None, 1, 1)
    });
}

/// What is kept of a constant kernel changes nothing, whether a thread takes all samples or one.
#[test]
fn kept_kernels_give_the_same_bits() {
    let values = |n: usize, seed: u64| crate::diffusion::Generator::new(seed).randn(n);
    let tensor = |shape: &[usize], seed| {
        let values = values(shape.iter().product(), seed);
        candle_core::Var::from_vec(values, shape, &candle_core::Device::Cpu).unwrap().into_inner()
    };
    let geometries = [(64, 50, 8, 1, 1, 0), (20, 33, 8, 3, 2, 1), (24, 40, 2, 3, 1, 1)];
    for (inputs, outputs, height, kernel, stride, padding) in geometries {
        let g = Geometry { batch: 9, inputs, outputs, height, width: 6, kernel, stride, padding };
        let (x, w, bias) = (values(9 * g.in_sample(), 1), values(outputs * g.taps(), 2), values(outputs, 3));
        let op = |points| Convolution { geometry: g, way: Way::Columns, points };
        let forward = |points, bias| match op(points).forward(&x, w.as_slice().into(), bias) {
            (CpuStorage::F32(y), _) => y,
            other => panic!("{other:?}"),
        };
        for bias in [None, Some(&bias[..])] {
            let expected = forward(None, bias);
            assert!(forward(Some(Arc::default()), bias) == expected);
            assert!(on_this_thread(|| forward(Some(Arc::default()), bias)) == expected);
        }
        let (x, w) = (tensor(&[9, inputs, height, 6], 4), tensor(&[outputs, inputs, kernel, kernel], 5).detach());
        let dy = tensor(&[9, outputs, g.out_height(), g.out_width()], 6).detach();
        let backward = |points| op(points).backward(&x, &w, &dy).unwrap().0.unwrap().flatten_all().unwrap();
        let [expected, found] = [None, Some(Arc::default())].map(|points| backward(points).to_vec1::<f32>().unwrap());
        assert!(found == expected);
    }
}
