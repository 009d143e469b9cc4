//! Every hand-written operation against burn's composition of it, outputs and gradients, at every
//! instruction-set level this machine has.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{Distribution, Tensor, TensorData, Tolerance};
use burn_flex::Flex;

use super::matrix::Matrix;
use super::panels::Panels;
use super::simd::{Level, force};
use super::*;

type Wide = Tensor<Ad<Flex>, 2>;

const LEVELS: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

/// Held by each test: the level is the whole process's, and weights are laid out for the one in force. The inputs
/// are the same every time, as far as no other test draws from the same source meanwhile.
fn alone() -> MutexGuard<'static, ()> {
    static LEVEL: Mutex<()> = Mutex::new(());
    let alone = LEVEL.lock().unwrap_or_else(PoisonError::into_inner);
    <Flex as burn::tensor::backend::Backend>::seed(&Default::default(), 20_240);
    alone
}

fn random(rows: usize, columns: usize) -> Wide {
    Tensor::random(
        [rows, columns],
        Distribution::Normal(0.0, 1.0),
        &Default::default(),
    )
}

fn plain_random(rows: usize, columns: usize) -> Tensor<Flex, 2> {
    random(rows, columns).inner()
}

/// Runs both versions on tracked copies of the same inputs, weighs the outputs with the same random
/// gradient, and compares outputs and input gradients, these also with finite differences.
fn compare<const N: usize>(
    inputs: [Wide; N],
    ours: impl Fn([Wide; N]) -> Wide,
    reference: impl Fn([Wide; N]) -> Wide,
) {
    let dims = ours(inputs.clone()).dims();
    let weights = random(dims[0], dims[1]);
    let run = |function: &dyn Fn([Wide; N]) -> Wide| {
        let tracked = inputs
            .clone()
            .map(|x| Tensor::from_inner(x.inner()).require_grad());
        let output = function(tracked.clone());
        let gradients = (output.clone() * weights.clone()).sum().backward();
        (
            output.inner(),
            tracked.map(|x| x.grad(&gradients).expect("a gradient for every input")),
        )
    };
    let (expected, expected_gradients) = run(&reference);
    for level in LEVELS {
        force(level);
        let (output, gradients) = run(&ours);
        let tolerance = Tolerance::<f32>::rel_abs(1e-4, 2e-5);
        output
            .into_data()
            .assert_approx_eq(&expected.clone().into_data(), tolerance);
        for (gradient, expected) in gradients.iter().zip(&expected_gradients) {
            gradient
                .to_data()
                .assert_approx_eq(&expected.clone().into_data(), tolerance);
        }
        agree_with_differences(&inputs, &gradients, |inputs| {
            (ours(inputs).inner() * weights.clone().inner()).into_data()
        });
        // Untracked inputs take another path.
        let untracked = ours(inputs.clone()).inner();
        untracked
            .into_data()
            .assert_approx_eq(&expected.clone().into_data(), tolerance);
    }
    force(Level::Avx512);
}

/// Each input's gradient along a random direction against the central difference there, of a sum of `terms`
/// that is taken in f64. Differences of f32 values are good to a few parts in a thousand.
fn agree_with_differences<const N: usize>(
    inputs: &[Wide; N],
    gradients: &[Tensor<Flex, 2>; N],
    terms: impl Fn([Wide; N]) -> TensorData,
) {
    const STEP: f32 = 1e-2;
    let sum = |data: TensorData| -> f64 { data.iter::<f32>().map(f64::from).sum() };
    let size = |data: TensorData| -> f64 { data.iter::<f32>().map(|x| f64::from(x).powi(2)).sum() };
    for (which, gradient) in gradients.iter().enumerate() {
        let [rows, columns] = gradient.dims();
        let direction = plain_random(rows, columns);
        let moved = |by: f32| {
            let mut inputs = inputs.clone();
            let to = inputs[which].clone().inner() + direction.clone() * by;
            inputs[which] = Tensor::from_inner(to);
            sum(terms(inputs))
        };
        let difference = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
        let slope = sum((gradient.clone() * direction.clone()).into_data());
        // A random slope is about as large as the gradient is long.
        let scale = size(gradient.to_data()).sqrt();
        assert!(
            (difference - slope).abs() <= 1e-2 * (scale + slope.abs()),
            "input {which}: the slope is {slope}, the difference {difference}"
        );
    }
}

#[test]
fn activations() {
    let _alone = alone();
    for function in [
        Activation::Gelu,
        Activation::GeluNew,
        Activation::Relu,
        Activation::Silu,
        Activation::QuickGelu,
    ] {
        // Away from zero, where ReLU has a corner.
        let x = random(37, 53) * 2.0;
        compare(
            [x.clone() + x.sign() * 0.1],
            |[x]| Flex::activation(x, function),
            |[x]| activation::composed(x, function),
        );
    }
}

#[test]
fn gated_activations() {
    let _alone = alone();
    for function in [Activation::Silu, Activation::Gelu, Activation::GeluNew] {
        compare(
            [random(19, 2 * 37)],
            |[x]| Flex::gated(x, function),
            |[x]| activation::composed_gated(x, function),
        );
    }
}

#[test]
fn norms() {
    let _alone = alone();
    let vector = || plain_random(1, 50).reshape([50]);
    for (kind, beta) in [
        (NormKind::Layer, Some(vector())),
        (NormKind::Layer, None),
        (NormKind::RootMeanSquare, None),
    ] {
        let norm = Norm {
            kind,
            gamma: vector(),
            beta,
            epsilon: 1e-6,
        };
        compare(
            [random(35, 50), random(35, 50)],
            |[x, r]| Flex::add_norm(x, Some(r), &norm),
            |[x, r]| norm::composed(x, Some(r), &norm),
        );
        compare(
            [random(35, 50) + 3.0],
            |[x]| Flex::add_norm(x, None, &norm),
            |[x]| norm::composed(x, None, &norm),
        );
    }
}

#[test]
fn rotary_positions() {
    let _alone = alone();
    let positions: Vec<u32> = (0..9).chain(0..4).collect();
    // Heads of 6 and of 32, with and without columns that stay as they are.
    for (size, columns, width) in [(6, 18, 24), (32, 64, 64)] {
        let frequencies: Vec<f64> = (0..size / 2)
            .map(|i| 10_000f64.powf(-2.0 * i as f64 / size as f64))
            .collect();
        let angles = Angles::new(&positions, &frequencies, &Default::default());
        compare(
            [random(13, width)],
            |[x]| Flex::rotate(x, columns, &angles),
            |[x]| rotary::composed(x, columns, &angles),
        );
        let x = random(13, width);
        let turned = Flex::rotate(x.clone(), columns, &angles);
        // Position 0 stays, and a turn changes no length.
        let [first, same] = [&turned, &x].map(|x| x.clone().inner().slice_dim(0, 9..10));
        first.into_data().assert_eq(&same.into_data(), true);
        let [length, same] = [turned, x].map(|x| x.inner().powi_scalar(2).sum_dim(1).into_data());
        length.assert_approx_eq(&same, Tolerance::<f32>::rel_abs(1e-5, 1e-5));
    }
}

/// `softmax` of logits up to ±60, with more rows than one chunk has; and of capped ones.
#[test]
fn a_language_model_head_and_its_loss() {
    let _alone = alone();
    fn of(classes: &[u32]) -> Targets<'_, Flex> {
        Targets {
            classes,
            uploaded: None,
        }
    }
    for cap in [None, Some(2.0)] {
        let targets: Vec<u32> = (0..33).map(|row| row * 7 % 130).collect();
        let head = frozen(130, 24);
        compare(
            [random(33, 24) * 3.0],
            |[x]| Flex::linear_cross_entropy(x, &head, of(&targets), cap).unsqueeze(),
            |[x]| cross_entropy::composed(x, &head, of(&targets), cap).unsqueeze(),
        );
        let wide = frozen(140_000, 8);
        let targets: Vec<u32> = (0..65).map(|row| row * 2111).collect();
        compare(
            [random(65, 8)],
            |[x]| Flex::linear_cross_entropy(x, &wide, of(&targets), cap).unsqueeze(),
            |[x]| cross_entropy::composed(x, &wide, of(&targets), cap).unsqueeze(),
        );
    }
}

/// A branch whose pair, if any, is made of these.
fn branch<'a>(frozen: &'a Frozen<Flex>, pair: Option<(&Wide, &Wide, Dropout)>) -> Branch<'a, Flex> {
    let lora = pair.map(|(a, b, dropout)| Lora {
        a: a.clone(),
        b: b.clone(),
        scale: 0.5,
        dropout,
    });
    Branch { frozen, lora }
}

fn frozen(outputs: usize, inputs: usize) -> Frozen<Flex> {
    let bias = plain_random(1, outputs).reshape([outputs]);
    Frozen::new(plain_random(outputs, inputs), Some(bias), Precision::F32)
}

#[test]
fn linear_layers() {
    let _alone = alone();
    let layer = frozen(40, 24);
    let no_bias = Frozen::new(plain_random(40, 24), None, Precision::F32);
    for (rows, layer) in [(33, &layer), (1, &no_bias)] {
        compare(
            [random(rows, 24)],
            |[x]| Flex::linears(x, vec![branch(layer, None)]).y,
            |[x]| linear::composed(x, vec![branch(layer, None)]).y,
        );
    }
    let adapted = |a: Wide, b: Wide| vec![branch(&layer, Some((&a, &b, Dropout::NONE)))];
    compare(
        [random(33, 24), random(4, 24), random(40, 4)],
        |[x, a, b]| Flex::linears(x, adapted(a, b)).y,
        |[x, a, b]| linear::composed(x, adapted(a, b)).y,
    );
}

#[test]
fn linear_layers_in_bf16() {
    let _alone = alone();
    let exact = frozen(40, 70);
    let inputs = [random(33, 70), random(4, 70), random(40, 4)];
    let weights = random(33, 40);
    let run = |layer: &Frozen<Flex>| {
        let tracked = inputs
            .clone()
            .map(|x| Tensor::from_inner(x.inner()).require_grad());
        let [x, a, b] = &tracked;
        let adapted = vec![branch(layer, Some((a, b, Dropout::NONE)))];
        let y = Flex::linears(x.clone(), adapted).y;
        let gradients = (y.clone() * weights.clone()).sum().backward();
        let gradients = tracked.map(|x| x.grad(&gradients).expect("a gradient"));
        [vec![y.inner()], gradients.to_vec()].concat()
    };
    let norm = |x: Tensor<Flex, 2>| x.powi_scalar(2).sum().sqrt().into_scalar();
    for level in LEVELS {
        force(level);
        // Laid out for the level.
        let exact = Frozen::new(exact.weight.clone(), exact.bias.clone(), Precision::F32);
        let (weight, bias) = (exact.weight.clone(), exact.bias.clone());
        let rounded = Frozen::lean(weight, bias, Precision::Bf16);
        let pairs = run(&exact).into_iter().zip(run(&rounded));
        let far: Vec<f32> = pairs
            .map(|(exact, rounded)| norm(exact.clone() - rounded) / norm(exact))
            .collect();
        // The output and the input's gradient go through the weight; those of A and B do not.
        for (what, far) in ["y", "x"].iter().zip(&far) {
            assert!((1e-5..5e-3).contains(far), "{what} {far}");
        }
        assert!(far[2] < 1e-6 && far[3] < 1e-6, "{far:?}");
    }
    force(Level::Avx512);
}

/// Two layers with pairs over one input, in a precision, with the output's gradient times `scale`: the output, and the
/// gradients of the input and of each A and B, divided by it again.
fn in_half<B: Kernels>(
    values: &[Tensor<Flex, 2>],
    precision: Precision,
    scale: f32,
) -> Vec<Tensor<Flex, 2>> {
    let device = B::Device::default();
    let all: Vec<Tensor<B, 2>> = values
        .iter()
        .map(|values| Tensor::from_data(values.to_data(), &device))
        .collect();
    let [x, qa, qb, va, vb, wq, wv, g] = &all[..] else {
        panic!("eight tensors");
    };
    let [wq, wv] = [wq, wv].map(|weight| Frozen::lean(weight.clone(), None, precision));
    let tracked = [x, qa, qb, va, vb].map(|x| Tensor::from_inner(x.clone()).require_grad());
    let [x, qa, qb, va, vb] = &tracked;
    let adapted = [(&wq, qa, qb), (&wv, va, vb)].map(|(frozen, a, b)| Branch {
        frozen,
        lora: Some(Lora {
            a: a.clone(),
            b: b.clone(),
            scale: 0.5,
            dropout: Dropout::NONE,
        }),
    });
    let y = B::linears(x.clone(), adapted.to_vec()).y;
    let loss = (y.clone() * Tensor::from_inner(g.clone() * scale)).sum();
    let gradients = loss.backward();
    let found = tracked.map(|x| x.grad(&gradients).expect("a gradient") / scale);
    let found = [y.inner()].into_iter().chain(found);
    found
        .map(|tensor| Tensor::from_data(tensor.into_data(), &Default::default()))
        .collect()
}

#[test]
fn half_precision_by_burns_operations() {
    let _alone = alone();
    force(Level::Avx512);
    let sizes = [
        [33, 70],
        [4, 70],
        [40, 4],
        [4, 70],
        [24, 4],
        [40, 70],
        [24, 70],
        [33, 64],
    ];
    let mut values = sizes.map(|[rows, columns]| plain_random(rows, columns));
    let norm = |x: Tensor<Flex, 2>| x.powi_scalar(2).sum().sqrt().into_scalar();
    let apart = |ours: Vec<Tensor<Flex, 2>>, theirs: &[Tensor<Flex, 2>]| -> Vec<f32> {
        let pairs = ours.into_iter().zip(theirs);
        let far = pairs.map(|(ours, theirs)| norm(ours - theirs.clone()) / norm(theirs.clone()));
        far.collect()
    };
    let exact = in_half::<Flex>(&values, Precision::F32, 1.0);
    // Of bf16 also the CPU's own kernel, which does not round the sum.
    let on_cpu = in_half::<Flex>(&values, Precision::Bf16, 1.0);
    let rounded = in_half::<Composed>(&values, Precision::Bf16, 1.0);
    let far = apart(rounded, &on_cpu);
    assert!(
        far[..2].iter().all(|far| (1e-5..3e-3).contains(far)),
        "{far:?}"
    );
    for (precision, range) in [(Precision::Bf16, 1e-5..5e-3), (Precision::F16, 1e-6..1e-3)] {
        let far = apart(in_half::<Composed>(&values, precision, 1.0), &exact);
        // The output and the input's gradient go through the weights; those of A and B do not.
        assert!(far[..2].iter().all(|far| range.contains(far)), "{far:?}");
        assert!(far[2..].iter().all(|far| *far < 1e-6), "{far:?}");
    }
    // What f16 has no number for any more is there again under a scale.
    values[7] = values[7].clone() * 1e-9;
    let exact = in_half::<Flex>(&values, Precision::F32, 1.0);
    let far = |scale| apart(in_half::<Composed>(&values, Precision::F16, scale), &exact)[1];
    assert!(far(1.0) > 0.5, "{}", far(1.0));
    assert!(far((1u64 << 30) as f32) < 1e-3);
}

#[test]
fn several_layers_read_one_input() {
    let _alone = alone();
    // Wider than one panel and one stretch of the inner size, with rows for several tasks.
    let [q, k, v] = [70, 33, 96].map(|outputs| frozen(outputs, 500));
    let branches = |[qa, qb, va, vb]: [Wide; 4]| {
        vec![
            branch(&q, Some((&qa, &qb, Dropout::NONE))),
            branch(&k, None),
            branch(&v, Some((&va, &vb, Dropout::NONE))),
        ]
    };
    compare(
        [
            random(230, 500) * 0.1,
            random(8, 500) * 0.1,
            random(70, 8),
            random(3, 500) * 0.1,
            random(96, 3),
        ],
        |[x, qa, qb, va, vb]| Flex::linears(x, branches([qa, qb, va, vb])).y,
        |[x, qa, qb, va, vb]| linear::composed(x, branches([qa, qb, va, vb])).y,
    );
}

#[test]
fn a_pair_that_adds_nothing_is_left_out() {
    let _alone = alone();
    let layer = frozen(40, 24);
    let (x, a, zero) = (random(9, 24), random(4, 24), random(40, 4) * 0.0);
    let silent = |b: Wide| {
        let pair = Some((&a, &b, Dropout::NONE));
        Flex::linears(x.clone(), vec![branch(&layer, pair)])
    };
    let inactive = silent(zero.clone());
    assert!(inactive.side[0].is_none());
    let alone = Flex::linears(x.clone(), vec![branch(&layer, None)]);
    alone.y.into_data().assert_eq(&inactive.y.into_data(), true);
    // An active one starts to learn from there.
    let b = Tensor::from_inner(zero.inner()).require_grad();
    let active = silent(b.clone());
    assert!(active.side[0].is_some());
    let gradients = active.y.sum().backward();
    let gradient = b.grad(&gradients).expect("a gradient");
    assert!(gradient.abs().sum().into_scalar() > 0.1);
}

#[test]
fn lora_with_dropout_masks_the_side_path_alone() {
    let _alone = alone();
    let layers = [frozen(40, 24), frozen(16, 24)];
    let sites = [9, 10].map(|seed| Dropout {
        probability: 0.4,
        seed,
        first: 0,
    });
    compare(
        [
            random(33, 24),
            random(4, 24),
            random(40, 4),
            random(4, 24),
            random(16, 4),
        ],
        |[x, a, b, c, d]| {
            let branches = vec![
                branch(&layers[0], Some((&a, &b, sites[0]))),
                branch(&layers[1], Some((&c, &d, sites[1]))),
            ];
            Flex::linears(x, branches).y
        },
        |[x, a, b, c, d]| {
            let parts = [(a, b), (c, d)].into_iter().enumerate().map(|(i, (a, b))| {
                let dropped = Flex::dropout(x.clone(), sites[i]);
                linear::composed(x.clone(), vec![branch(&layers[i], None)]).y
                    + dropped.matmul(a.transpose()).matmul(b.transpose()) * 0.5
            });
            Tensor::cat(parts.collect(), 1)
        },
    );
}

/// Some are looked up several times, one of which does not move.
#[test]
fn columns_that_are_looked_up() {
    let _alone = alone();
    for (rows, width, still) in [(3, 7, None), (4, 11, Some(2)), (1, 1, Some(0))] {
        let ids: Vec<i64> = (0..40)
            .map(|at| (at * at + at / 3) % width as i64)
            .collect();
        let ids = Tensor::<Flex, 1, burn::tensor::Int>::from_data(&ids[..], &Default::default());
        let ours = |[matrix]: [Wide; 1]| Flex::lookup(matrix, ids.clone(), still);
        let theirs = |[matrix]: [Wide; 1]| super::lookup::composed(matrix, ids.clone(), still);
        let matrix = random(rows, width).require_grad();
        let (ours, theirs) = (ours([matrix.clone()]), theirs([matrix.clone()]));
        let weights = Tensor::from_inner(plain_random(40, rows));
        let gradients = [&ours, &theirs].map(|found| {
            let found = (found.clone() * weights.clone()).sum().backward();
            matrix.grad(&found).expect("a gradient").into_data()
        });
        ours.into_data().assert_eq(&theirs.into_data(), true);
        gradients[0].assert_approx_eq::<f32>(&gradients[1], Tolerance::absolute(1e-5));
        if let Some(still) = still {
            let moved = gradients[0].iter::<f32>().skip(still).step_by(width);
            assert_eq!(moved.collect::<Vec<_>>(), vec![0.0; rows]);
        }
    }
}

#[test]
fn a_scaled_matrix() {
    let _alone = alone();
    for (rows, columns) in [(40, 24), (1, 33), (70, 1)] {
        let matrix = plain_random(rows, columns);
        compare(
            [random(rows, 1), random(columns, 1)],
            |[rows, columns]| Flex::scaled(&matrix, rows, columns),
            |[rows, columns]| scaled::composed(&matrix, rows, columns),
        );
    }
}

#[test]
fn columns_multiplied_and_moved() {
    let _alone = alone();
    for (rows, columns) in [(1, 1), (33, 40), (100, 7)] {
        compare(
            [
                random(rows, columns),
                random(1, columns),
                random(1, columns),
            ],
            |[x, by, to]| Flex::per_column(x, Some(by), Some(to)),
            |[x, by, to]| columns::composed(x, Some(by), Some(to)),
        );
        compare(
            [random(rows, columns), random(1, columns)],
            |[x, by]| Flex::per_column(x, Some(by), None),
            |[x, by]| columns::composed(x, Some(by), None),
        );
        compare(
            [random(rows, columns), random(1, columns)],
            |[x, to]| Flex::per_column(x, None, Some(to)),
            |[x, to]| columns::composed(x, None, Some(to)),
        );
    }
}

#[test]
fn vera_is_its_own_formula() {
    let _alone = alone();
    // λ_b ∘ (B·(λ_d ∘ (A·dropout(x)))), written as in the paper; gradients reach x and the vectors.
    let layer = frozen(40, 24);
    let (a, b) = (plain_random(7, 24), plain_random(40, 7));
    for dropout in [
        Dropout::NONE,
        Dropout {
            probability: 0.4,
            seed: 9,
            first: 0,
        },
    ] {
        compare(
            [random(33, 24), random(7, 1), random(40, 1)],
            |[x, d, lambda_b]| {
                let b = Flex::scaled(&b, lambda_b, d);
                let lora = Lora {
                    a: Tensor::from_inner(a.clone()),
                    b,
                    scale: 1.0,
                    dropout,
                };
                let frozen = &layer;
                let lora = Some(lora);
                Flex::linears(x, vec![Branch { frozen, lora }]).y
            },
            |[x, d, lambda_b]| {
                let [a, b] = [&a, &b].map(|matrix| Tensor::from_inner(matrix.clone()).transpose());
                let inner = Flex::dropout(x.clone(), dropout).matmul(a) * d.transpose();
                linear::composed(x, vec![branch(&layer, None)]).y
                    + inner.matmul(b) * lambda_b.transpose()
            },
        );
    }
}

#[test]
fn products_reach_every_edge() {
    let _alone = alone();
    let to_bf16 = |x: f32| half::bf16::from_f32(x).to_f32();
    let to_f16 = |x: f32| half::f16::from_f32(x).to_f32();
    type Rounding = fn(f32) -> f32;
    let roundings: [(Rounding, usize); 3] = [(|x| x, 4), (to_bf16, 2), (to_f16, 2)];
    // Around the tiles' rows, the panels' columns and the stretches of the inner size.
    for (m, n, k) in [
        (1, 1, 1),
        (7, 16, 3),
        (13, 31, 385),
        (25, 33, 49),
        (200, 65, 800),
        (500, 70, 334),
        (3, 40, 2048),
    ] {
        for (rounding, bytes) in roundings {
            let [a, b] = [(m, k), (k, n)].map(|(rows, columns)| plain_random(rows, columns));
            let read = |x: &Tensor<Flex, 2>| x.to_data().to_vec::<f32>().expect("f32 values");
            let b: Vec<f32> = read(&b).into_iter().map(rounding).collect();
            let b = Tensor::<Flex, 2>::from_data(TensorData::new(b, [k, n]), &Default::default());
            let expected = a.clone().matmul(b.clone()).into_data();
            let (at, bt) = (read(&a.clone().transpose()), read(&b.clone().transpose()));
            let (a, b) = (read(&a), read(&b));
            for level in LEVELS {
                force(level);
                let left = Matrix::new(&a, m, k);
                let right = Matrix::new(&b, k, n);
                let panels = Panels::new(right);
                let transposed = Panels::new(Matrix::new(&bt, n, k));
                if n * k > 40 {
                    assert!(panels.bytes() < (n + 31) * k * bytes + 64);
                }
                let read = gemm::Left::new(left, &panels);
                let terms = [
                    gemm::Term::plain(1.0, left, right),
                    gemm::Term::packed(&read, &panels),
                    gemm::Term::transposed(&read, &transposed),
                    gemm::Term::plain(1.0, Matrix::new(&at, k, m).t(), right),
                    gemm::Term::plain(1.0, left, Matrix::new(&bt, n, k).t()),
                ];
                let products = terms.map(|term| gemm::product(gemm::Start::Zero, &[term]));
                TensorData::new(products[0].clone(), [m, n])
                    .assert_approx_eq(&expected, Tolerance::<f32>::rel_abs(1e-4, 1e-3));
                // However the right-hand side is kept, the bits are the same.
                for (way, product) in products.iter().enumerate() {
                    assert!(*product == products[0], "{m} × {n} × {k}, {level:?}, {way}");
                }
            }
        }
    }
    force(Level::Avx512);
}

#[test]
fn products_in_bf16_reach_every_edge() {
    let _alone = alone();
    let round = |values: &[f32]| -> Vec<f32> {
        let halves = values.iter().map(|value| half::bf16::from_f32(*value));
        halves.map(half::bf16::to_f32).collect()
    };
    for (m, n, k) in [
        (1, 1, 1),
        (7, 16, 3),
        (13, 31, 385),
        (25, 33, 49),
        (200, 65, 800),
        (500, 70, 335),
        (3, 40, 2048),
    ] {
        let read = |rows, columns| {
            let values = plain_random(rows, columns).into_data();
            values.into_vec::<f32>().expect("f32 values")
        };
        // Wider than the product reads of it, so that rows are not what is left of the last one.
        let (a, b, c, d) = (read(m, k + 3), read(k, n), read(m, 4), read(4, n));
        let turned = |values: &[f32]| {
            let values = TensorData::new(values.to_vec(), [k, n]);
            let tensor = Tensor::<Flex, 2>::from_data(values, &Default::default()).transpose();
            tensor.into_data().to_vec::<f32>().expect("f32 values")
        };
        let (rounded_a, rounded_b) = (round(&a), round(&b));
        let side = gemm::Term::plain(0.5, Matrix::new(&c, m, 4), Matrix::new(&d, 4, n));
        let exact = gemm::Term::plain(
            1.0,
            Matrix::new(&rounded_a, m, k + 3).columns(1, k),
            Matrix::new(&rounded_b, k, n),
        );
        let bias: Vec<f32> = (0..n).map(|column| column as f32).collect();
        let start = gemm::Start::Bias(&bias);
        let expected = TensorData::new(gemm::product(start, &[exact, side]), [m, n]);
        let mut all: Vec<Vec<f32>> = Vec::new();
        for level in LEVELS {
            force(level);
            let left = Matrix::new(&a, m, k + 3).columns(1, k);
            let panels = Panels::rounded(Matrix::new(&b, k, n));
            let bt = turned(&b);
            let transposed = Panels::rounded(Matrix::new(&bt, n, k));
            assert!(n * k < 200 || panels.bytes() < (n + 31) * (k + 1) * 2 + 64);
            let read = gemm::Left::new(left, &panels);
            for term in [
                gemm::Term::packed(&read, &panels),
                gemm::Term::transposed(&read, &transposed),
            ] {
                let ours = gemm::product(start, &[term, side]);
                TensorData::new(ours.clone(), [m, n])
                    .assert_approx_eq(&expected, Tolerance::<f32>::rel_abs(1e-4, 1e-3));
                all.push(ours);
            }
        }
        force(Level::Avx512);
        // The instruction, and what stands in for it where fused products are an instruction.
        let fused = all.iter().skip(2).all(|product| *product == all[2]);
        assert!(fused || simd::best() < Level::Avx2, "{m} × {n} × {k}");
    }
}

#[test]
fn a_product_is_shared_out_evenly() {
    for threads in 2..=64 {
        for tokens in [512, 1000, 2048, 4096, 16384] {
            // Of 384 columns and more, in panels of two vectors of eight or sixteen.
            for (panels, copied) in [12, 18, 24, 48, 96]
                .into_iter()
                .flat_map(|n| [(n, false), (n, true)])
            {
                let rows = gemm::shared_rows(tokens, panels, threads, copied);
                // Each thread takes the next task when it has done with one.
                let mut work = vec![0; threads];
                for first in (0..tokens).step_by(rows) {
                    for _ in 0..panels {
                        let next = (0..threads).min_by_key(|thread| work[*thread]);
                        work[next.expect("a thread")] += rows.min(tokens - first);
                    }
                }
                let most = *work.iter().max().expect("a thread") as f64;
                let mean = (tokens * panels) as f64 / threads as f64;
                assert!(
                    most <= 1.1 * mean,
                    "{tokens} tokens, {panels} panels, {threads} threads: {most} rows, {mean} on average"
                );
            }
        }
    }
}

fn joint(q: Wide, k: Wide, v: Wide) -> Projected<Flex> {
    Projected::Joint(Tensor::cat(vec![q, k, v], 1))
}

#[test]
fn attention_within_sequences() {
    let _alone = alone();
    // Lengths around the vectors and the block of rows; head sizes whole and broken; grouped heads.
    let offsets = [0, 1, 6, 22, 39, 60, 160];
    for (heads, pair_heads, head_size) in [
        (3, 3, 16),
        (2, 2, 32),
        (1, 1, 20),
        (2, 2, 5),
        (4, 2, 32),
        (6, 2, 12),
    ] {
        for causal in [false, true] {
            let shape = AttentionShape {
                pair_heads,
                causal,
                ..AttentionShape::full(heads, head_size)
            };
            let sequences = Sequences::new(&offsets);
            let layout = AttentionLayout::new(sequences.clone(), sequences, shape);
            let (width, pair_width) = (heads * head_size, pair_heads * head_size);
            compare(
                [
                    random(160, width),
                    random(160, pair_width),
                    random(160, pair_width),
                ],
                |[q, k, v]| Flex::packed_attention(joint(q, k, v), &layout, Dropout::NONE),
                |[q, k, v]| attention::composed(joint(q, k, v), None, &layout, Dropout::NONE),
            );
        }
    }
}

/// What of a sequence is near a token, whose window may be wider than it, and scores that are capped where it matters.
#[test]
fn attention_to_what_is_near_and_capped_scores() {
    let _alone = alone();
    let offsets = [0, 1, 6, 22, 39, 60, 190];
    for (heads, pair_heads, head_size, causal, reach, soft_cap) in [
        (2, 2, 16, false, Some(0), None),
        (2, 2, 16, true, Some(0), None),
        (3, 1, 5, false, Some(3), None),
        (4, 2, 32, true, Some(17), None),
        (2, 1, 64, false, Some(40), Some(0.7)),
        (2, 1, 12, true, Some(1000), Some(1.5)),
        (2, 2, 20, false, None, Some(0.7)),
        (4, 2, 8, true, None, Some(0.7)),
    ] {
        let shape = AttentionShape {
            pair_heads,
            causal,
            reach,
            soft_cap,
            scale: 0.3,
            ..AttentionShape::full(heads, head_size)
        };
        let sequences = Sequences::new(&offsets);
        let layout = AttentionLayout::new(sequences.clone(), sequences.clone(), shape);
        let inputs = || {
            let pairs = [(); 2].map(|()| random(190, pair_heads * head_size));
            let [k, v] = pairs;
            [random(190, heads * head_size), k, v]
        };
        compare(
            inputs(),
            |[q, k, v]| Flex::packed_attention(joint(q, k, v), &layout, Dropout::NONE),
            |[q, k, v]| attention::composed(joint(q, k, v), None, &layout, Dropout::NONE),
        );
        // The composition itself: what is out of reach changes nothing of a token.
        let Some(reach) = reach.filter(|reach| *reach < 60) else {
            continue;
        };
        let [q, k, v] = inputs();
        let run = |k: &Wide| {
            let projected = joint(q.clone(), k.clone(), v.clone());
            let out = attention::composed(projected, None, &layout, Dropout::NONE).inner();
            out.slice_dim(0, 100..101).into_data()
        };
        let row = |at: usize| {
            let mut moved = k.clone().inner().into_data();
            let width = pair_heads * head_size;
            let values = moved.as_mut_slice::<f32>().expect("f32 values");
            values[at * width..(at + 1) * width].fill(3.0);
            run(&Tensor::from_data(moved, &Default::default()))
        };
        let plain = run(&k);
        assert_eq!(row(100 - reach - 1), plain, "behind");
        assert_eq!(row(100 + reach + 1), plain, "ahead");
        if reach > 0 {
            assert_ne!(row(100 - reach), plain);
            assert_eq!(row(100 + reach) == plain, causal);
        }
    }
}

#[test]
fn attention_of_some_queries_to_what_is_near() {
    let _alone = alone();
    let pairs = Sequences::new(&[0, 7, 8, 108]);
    for (queries, causal) in [
        // The first of each, and the last ones.
        (Sequences::single(3), false),
        (Sequences::single(3), true),
        (Sequences::new(&[0, 2, 2, 60]), false),
        (Sequences::new(&[0, 3, 4, 64]), true),
    ] {
        let shape = AttentionShape {
            causal,
            reach: Some(4),
            soft_cap: Some(1.0),
            ..AttentionShape::full(3, 8)
        };
        let layout = AttentionLayout::new(queries, pairs.clone(), shape);
        let split = |q: Wide, kv: Wide| Projected::Split {
            queries: q,
            pairs: kv,
        };
        compare(
            [random(layout.queries.tokens(), 24), random(108, 48)],
            |[q, kv]| Flex::packed_attention(split(q, kv), &layout, Dropout::NONE),
            |[q, kv]| attention::composed(split(q, kv), None, &layout, Dropout::NONE),
        );
    }
}

/// Rows of relative positions near and far, of which a short sequence has few and a long one all.
#[test]
fn disentangled_attention() {
    let _alone = alone();
    // Distances are told apart up to 5, then in twos, and beyond 9 no more: 16 rows.
    let row = |distance: isize| {
        let size = distance.abs();
        let size = if size <= 5 {
            size
        } else {
            (5 + (size - 4) / 2).min(7)
        };
        (size * distance.signum() + 8) as usize
    };
    for (heads, head_size, single) in [(2, 16, false), (3, 5, false), (1, 64, false), (2, 12, true)]
    {
        let pairs = Sequences::new(&[0, 1, 6, 22, 39, 60, 160]);
        let queries = match single {
            true => Sequences::single(6),
            false => pairs.clone(),
        };
        let shape = AttentionShape {
            scale: 0.2,
            ..AttentionShape::full(heads, head_size)
        };
        let mut layout = AttentionLayout::new(queries, pairs, shape);
        layout.buckets = Some(Buckets::new(100, row));
        let width = heads * head_size;
        let split = |q: Wide, kv: Wide| Projected::Split {
            queries: q,
            pairs: kv,
        };
        compare(
            [
                random(layout.queries.tokens(), width),
                random(160, 2 * width),
                random(16, 2 * width),
            ],
            |[q, kv, p]| Flex::disentangled_attention(split(q, kv), p, &layout, Dropout::NONE),
            |[q, kv, p]| attention::composed(split(q, kv), Some(p), &layout, Dropout::NONE),
        );
        if !single {
            compare(
                [random(160, 3 * width), random(16, 2 * width)],
                |[all, p]| {
                    let all = Projected::Joint(all);
                    Flex::disentangled_attention(all, p, &layout, Dropout::NONE)
                },
                |[all, p]| {
                    attention::composed(Projected::Joint(all), Some(p), &layout, Dropout::NONE)
                },
            );
        }
    }
}

#[test]
fn means_of_ranges() {
    let _alone = alone();
    let ranges = [0..1, 3..20, 20..31];
    for width in [1, 16, 37] {
        compare(
            [random(33, width)],
            |[x]| Flex::means(x, ranges.to_vec()),
            |[x]| means::composed(x, &ranges),
        );
    }
}

#[test]
fn attention_of_some_queries() {
    let _alone = alone();
    let pairs = Sequences::new(&[0, 7, 8, 48]);
    for (queries, causal) in [
        (Sequences::single(3), false),
        (Sequences::new(&[0, 2, 2, 60]), false),
        (Sequences::new(&[0, 3, 4, 20]), true),
    ] {
        let shape = AttentionShape {
            causal,
            ..AttentionShape::full(3, 8)
        };
        let layout = AttentionLayout::new(queries, pairs.clone(), shape);
        let split = |q: Wide, kv: Wide| Projected::Split {
            queries: q,
            pairs: kv,
        };
        compare(
            [random(layout.queries.tokens(), 24), random(48, 48)],
            |[q, kv]| Flex::packed_attention(split(q, kv), &layout, Dropout::NONE),
            |[q, kv]| attention::composed(split(q, kv), None, &layout, Dropout::NONE),
        );
    }
}

/// Masks are the same, so that all else compares as without.
#[test]
fn dropout_by_burns_operations() {
    let _alone = alone();
    let site = Dropout {
        probability: 0.3,
        seed: 0x9e0b_1234,
        first: 3,
    };
    compare(
        [random(130, 150)],
        |[x]| Flex::dropout(x, site),
        |[x]| dropout::composed_in_a_row(x, site),
    );
    let layer = frozen(40, 24);
    let adapted = |a: Wide, b: Wide| vec![branch(&layer, Some((&a, &b, site)))];
    compare(
        [random(33, 24), random(4, 24), random(40, 4)],
        |[x, a, b]| Flex::linears(x, adapted(a, b)).y,
        |[x, a, b]| linear::composed(x, adapted(a, b)).y,
    );
    for (offsets, causal) in [
        (&[0, 1, 6, 22, 39, 60, 160][..], false),
        (&[0, 1, 6, 22, 39, 60, 160], true),
        (&[0, 20, 40, 60], false),
    ] {
        let shape = AttentionShape {
            pair_heads: 2,
            causal,
            ..AttentionShape::full(4, 12)
        };
        let sequences = Sequences::new(offsets);
        let tokens = sequences.tokens();
        let layout = AttentionLayout::new(sequences.clone(), sequences, shape);
        compare(
            [random(tokens, 48), random(tokens, 24), random(tokens, 24)],
            |[q, k, v]| Flex::packed_attention(joint(q, k, v), &layout, site),
            |[q, k, v]| attention::composed(joint(q, k, v), None, &layout, site),
        );
    }
    // Some queries of each sequence.
    let pairs = Sequences::new(&[0, 7, 8, 108]);
    let queries = Sequences::new(&[0, 3, 4, 64]);
    let layout = AttentionLayout::new(queries, pairs, AttentionShape::full(3, 8));
    let split = |q: Wide, kv: Wide| Projected::Split {
        queries: q,
        pairs: kv,
    };
    compare(
        [random(64, 24), random(108, 48)],
        |[q, kv]| Flex::packed_attention(split(q, kv), &layout, site),
        |[q, kv]| attention::composed(split(q, kv), None, &layout, site),
    );
}

/// The gradient is that of differences, with the very same mask.
#[test]
fn attention_dropout_has_the_gradient_of_its_output() {
    let _alone = alone();
    dropout_of_attention(AttentionShape::full(2, 4));
    dropout_of_attention(AttentionShape {
        reach: Some(2),
        soft_cap: Some(2.0),
        ..AttentionShape::full(2, 4)
    });
}

fn dropout_of_attention(shape: AttentionShape) {
    let sequences = Sequences::new(&[0, 7]);
    let layout = AttentionLayout::new(sequences.clone(), sequences, shape);
    let site = Dropout {
        probability: 0.3,
        seed: 5,
        first: 0,
    };
    let inputs = [random(7, 8), random(7, 8), random(7, 8)];
    let weights = random(7, 8);
    let run = |inputs: [Wide; 3]| {
        let [q, k, v] = inputs;
        (Flex::packed_attention(joint(q, k, v), &layout, site) * weights.clone()).sum()
    };
    let tracked = inputs
        .clone()
        .map(|x| Tensor::from_inner(x.inner()).require_grad());
    let gradients = run(tracked.clone()).backward();
    for which in 0..3 {
        let direction = random(7, 8);
        let step = |h: f32| {
            let mut moved = inputs.clone();
            moved[which] = moved[which].clone() + direction.clone() * h;
            run(moved).into_scalar()
        };
        let difference = (step(1e-2) - step(-1e-2)) / 2e-2;
        let gradient = tracked[which].grad(&gradients).expect("a gradient");
        let slope = (gradient * direction.clone().inner()).sum().into_scalar();
        assert!(
            (slope - difference).abs() < 2e-3 * (1.0 + slope.abs()),
            "input {which}: {slope} against {difference}"
        );
    }
}

#[test]
fn dropout_drops_its_share_and_keeps_the_mean() {
    let _alone = alone();
    let site = Dropout {
        probability: 0.25,
        seed: 3,
        first: 0,
    };
    let x = Wide::ones([400, 250], &Default::default()).require_grad();
    let y = Flex::dropout(x.clone(), site);
    let values = y.clone().into_data().to_vec::<f32>().expect("f32 values");
    let zeros = values.iter().filter(|value| **value == 0.0).count() as f64;
    assert!(
        (zeros / 100_000.0 - 0.25).abs() < 0.01,
        "{zeros} of 100,000 dropped"
    );
    assert!(
        values
            .iter()
            .all(|value| *value == 0.0 || (*value - 4.0 / 3.0).abs() < 1e-6)
    );
    // The backward pass draws the same mask.
    let gradients = y.sum().backward();
    let gradient = x
        .grad(&gradients)
        .expect("a gradient")
        .into_data()
        .to_vec::<f32>();
    assert_eq!(gradient.expect("f32 values"), values);
}

#[test]
fn sums_of_absolute_values_and_squares() {
    let _alone = alone();
    let x = plain_random(300, 70);
    for columns in [0..70, 13..40] {
        let expected = measure::composed(x.clone(), columns.clone()).into_data();
        for level in LEVELS {
            force(level);
            Flex::sums(x.clone(), columns.clone())
                .into_data()
                .assert_approx_eq(&expected, Tolerance::<f32>::relative(1e-4));
        }
    }
}

#[test]
fn reductions_of_products_columns_and_examples() {
    let _alone = alone();
    let examples = [0, 1, 8, 9, 100];
    for width in [1, 32, 77] {
        let (a, b, narrow) = (
            plain_random(100, width),
            plain_random(100, width),
            plain_random(100, 5),
        );
        let columns = width / 3..width;
        let of = |whole: bool| {
            let (a, b, narrow) = (a.clone(), b.clone(), narrow.clone());
            let columns = columns.clone();
            match whole {
                true => [
                    Flex::products(a.clone(), b),
                    Flex::column_squares(a.clone()),
                    Flex::example_squares(narrow, a, columns, &examples),
                ],
                false => [
                    measure::composed_products(a.clone(), b),
                    measure::composed_column_squares(a.clone()),
                    measure::composed_example_squares(narrow, a, columns, &examples),
                ],
            }
        };
        for level in LEVELS {
            force(level);
            for (ours, reference) in of(true).into_iter().zip(of(false)) {
                let tolerance = Tolerance::<f32>::rel_abs(1e-4, 1e-3);
                let reference = reference.into_data();
                ours.into_data().assert_approx_eq(&reference, tolerance);
            }
        }
    }
}

#[test]
fn a_tap_sees_the_gradient_and_changes_nothing() {
    let _alone = alone();
    let seen = std::sync::Arc::new(Mutex::new(Vec::new()));
    let look = || {
        let seen = seen.clone();
        move |gradient: Tensor<Flex, 2>| {
            seen.lock().unwrap().push(gradient.into_data());
        }
    };
    let x = random(3, 4).require_grad();
    let weights = random(3, 4);
    let tapped = tap(x.clone() * 2.0, look);
    let gradients = (tapped * weights.clone()).sum().backward();
    let plain = (x.clone() * 2.0 * weights.clone()).sum().backward();
    let of = |gradients| x.grad(gradients).unwrap().into_data();
    assert_eq!(of(&gradients), of(&plain));
    assert_eq!(*seen.lock().unwrap(), [weights.into_data()]);
    // Where no gradient comes by, nothing looks.
    let untracked = random(3, 4);
    let tapped = tap::<Flex, fn(Tensor<Flex, 2>)>(untracked.clone(), || unreachable!());
    assert_eq!(tapped.into_data(), untracked.into_data());
}

#[test]
fn nothing_is_recorded_below_the_lowest_active_module() {
    let _alone = alone();
    let x = random(5, 24);
    let layer = frozen(40, 24);
    let tracked = |x: Wide| is_tracked(&Flex::linears(x, vec![branch(&layer, None)]).y);
    assert!(!tracked(x.clone()));
    assert!(tracked(x.require_grad()));
}

#[test]
fn adamw_updates() {
    let _alone = alone();
    let step = AdamWStep {
        rate: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        rest1: 0.1,
        rest2: 0.001,
        epsilon: 1e-8,
        weight_decay: 0.1,
        correction1: 1.0 - 0.9f32.powi(3),
        correction2: 1.0 - 0.999f32.powi(3),
        gradient_scale: 0.5,
    };
    let parameter = [
        plain_random(20, 31),
        plain_random(20, 31),
        plain_random(20, 31).abs(),
    ];
    let gradient = plain_random(20, 31);
    let expected = adamw::composed(parameter.clone(), gradient.clone(), step);
    for level in LEVELS {
        force(level);
        let ours = Flex::adamw(parameter.clone(), gradient.clone(), step);
        for (ours, expected) in ours.into_iter().zip(&expected) {
            let tolerance = Tolerance::<f32>::rel_abs(1e-5, 1e-6);
            ours.into_data()
                .assert_approx_eq(&expected.clone().into_data(), tolerance);
        }
    }
}

#[test]
fn sums_in_groups_are_those_of_each_matrix() {
    let _alone = alone();
    let sizes = [[3, 5], [5, 3], [2, 2], [1, 15], [4, 1]];
    let tensors = sizes.map(|[rows, columns]| plain_random(rows, columns));
    let groups = measure::composed_of(&tensors);
    // Of 15 values, and of 4.
    assert_eq!(groups.len(), 2);
    for groups in [groups, Flex::sums_of(&tensors)] {
        let mut seen = [false; 5];
        for (members, sums) in groups {
            let sums = sums.into_data().into_vec::<f32>().expect("f32 values");
            assert_eq!(sums.len(), 2 * members.len());
            for (member, sums) in members.iter().zip(sums.as_chunks::<2>().0) {
                assert!(!std::mem::replace(&mut seen[*member], true));
                let alone = Flex::sums(tensors[*member].clone(), 0..sizes[*member][1]);
                TensorData::new(sums.to_vec(), [2])
                    .assert_approx_eq(&alone.into_data(), Tolerance::<f32>::rel_abs(1e-5, 1e-6));
            }
        }
        assert_eq!(seen, [true; 5]);
    }
}
