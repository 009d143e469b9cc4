//! Every hand-written operation against burn's composition of it, outputs and gradients, at every
//! instruction-set level this machine has.

use burn::tensor::{Distribution, Tensor, Tolerance};
use burn_flex::Flex;

use super::simd::{Level, force};
use super::*;

type Wide = Tensor<Ad<Flex>, 2>;

const LEVELS: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

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
/// gradient, and compares outputs and input gradients.
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
        for (gradient, expected) in gradients.into_iter().zip(&expected_gradients) {
            gradient
                .into_data()
                .assert_approx_eq(&expected.clone().into_data(), tolerance);
        }
        // Untracked inputs take another path.
        let untracked = ours(inputs.clone()).inner();
        untracked
            .into_data()
            .assert_approx_eq(&expected.clone().into_data(), tolerance);
    }
    force(Level::Avx512);
}

#[test]
fn activations() {
    for function in [
        Activation::Gelu,
        Activation::GeluNew,
        Activation::Relu,
        Activation::Silu,
    ] {
        compare(
            [random(37, 53) * 2.0],
            |[x]| Flex::activation(x, function),
            |[x]| activation::composed(x, function),
        );
    }
}

#[test]
fn layer_norm() {
    let (gamma, beta) = (
        plain_random(1, 50).reshape([50]),
        plain_random(1, 50).reshape([50]),
    );
    compare(
        [random(35, 50), random(35, 50)],
        |[x, r]| Flex::add_layer_norm(x, Some(r), &gamma, &beta, 1e-12),
        |[x, r]| norm::composed(x, Some(r), &gamma, &beta, 1e-12),
    );
    compare(
        [random(35, 50)],
        |[x]| Flex::add_layer_norm(x, None, &gamma, &beta, 1e-5),
        |[x]| norm::composed(x, None, &gamma, &beta, 1e-5),
    );
}

#[test]
fn linear_layers() {
    let (weight, bias) = (plain_random(40, 24), plain_random(1, 40).reshape([40]));
    compare(
        [random(33, 24)],
        |[x]| Flex::frozen_linear(x, &weight, Some(&bias)),
        |[x]| linear::composed(x, &weight, Some(&bias)),
    );
    compare(
        [random(1, 24)],
        |[x]| Flex::frozen_linear(x, &weight, None),
        |[x]| linear::composed(x, &weight, None),
    );
    let pair = |a: Wide, b: Wide| Lora {
        a,
        b,
        scale: 0.5,
        dropout: Dropout::NONE,
    };
    compare(
        [random(33, 24), random(4, 24), random(40, 4)],
        |[x, a, b]| Flex::lora(x, &weight, Some(&bias), pair(a, b)).0,
        |[x, a, b]| linear::composed_lora(x, &weight, Some(&bias), pair(a, b)).0,
    );
}

#[test]
fn lora_with_dropout_masks_the_side_path_alone() {
    let weight = plain_random(40, 24);
    let site = Dropout {
        probability: 0.4,
        seed: 9,
    };
    let pair = |a: Wide, b: Wide, dropout| Lora {
        a,
        b,
        scale: 2.0,
        dropout,
    };
    compare(
        [random(33, 24), random(4, 24), random(40, 4)],
        |[x, a, b]| Flex::lora(x, &weight, None, pair(a, b, site)).0,
        |[x, a, b]| {
            let dropped = Flex::dropout(x.clone(), site);
            linear::composed(x, &weight, None)
                + dropped.matmul(a.transpose()).matmul(b.transpose()) * 2.0
        },
    );
}

#[test]
fn attention_within_sequences() {
    // Lengths around the block of four rows and the sixteen lanes; head sizes whole and broken.
    let sequences = Sequences::new(&[0, 1, 6, 22, 39, 60]);
    for (heads, head_size) in [(3, 16), (2, 32), (1, 20), (2, 5)] {
        let shape = AttentionShape { heads, head_size };
        let width = heads * head_size;
        compare(
            [random(60, width), random(60, width), random(60, width)],
            |[q, k, v]| Flex::packed_attention(q, k, v, &sequences, shape, Dropout::NONE),
            |[q, k, v]| attention::composed(q, k, v, &sequences, shape, Dropout::NONE),
        );
    }
}

/// With dropout there is no composition to compare with, since masks are each backend's own: the
/// gradient is checked against finite differences of the very same mask.
#[test]
fn attention_dropout_has_the_gradient_of_its_output() {
    let sequences = Sequences::new(&[0, 7]);
    let shape = AttentionShape {
        heads: 2,
        head_size: 4,
    };
    let site = Dropout {
        probability: 0.3,
        seed: 5,
    };
    let inputs = [random(7, 8), random(7, 8), random(7, 8)];
    let weights = random(7, 8);
    let run = |inputs: [Wide; 3]| {
        let [q, k, v] = inputs;
        (Flex::packed_attention(q, k, v, &sequences, shape, site) * weights.clone()).sum()
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
    let site = Dropout {
        probability: 0.25,
        seed: 3,
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
    let x = plain_random(300, 70);
    let expected = measure::composed(x.clone()).into_data();
    for level in LEVELS {
        force(level);
        Flex::sums(x.clone())
            .into_data()
            .assert_approx_eq(&expected, Tolerance::<f32>::relative(1e-4));
    }
}

#[test]
fn nothing_is_recorded_below_the_lowest_active_module() {
    let x = random(5, 24);
    let weight = plain_random(40, 24);
    assert!(!is_tracked(&Flex::frozen_linear(x.clone(), &weight, None)));
    assert!(is_tracked(&Flex::frozen_linear(
        x.require_grad(),
        &weight,
        None
    )));
}

#[test]
fn adamw_updates() {
    let step = AdamWStep {
        rate: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
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
