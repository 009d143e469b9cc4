use burn::tensor::{Distribution, Tensor};
use burn_flex::{Flex, FlexDevice};

use super::*;
use crate::adapter::{Config, LinearInfo, LoraConfig};
use crate::kernel::Precision;

type Plain = Tensor<Flex, 2>;
type Wide = Tensor<Ad<Flex>, 2>;

const INPUTS: usize = 24;
const RANK: usize = 3;

fn random(rows: usize, columns: usize) -> Plain {
    Tensor::random([rows, columns], Distribution::Normal(0.0, 1.0), &FlexDevice)
}

/// Three layers, the first and the last of which are modules: weights, what runs them, and the adapters.
fn scene(dropout: f64) -> (Vec<(Plain, Frozen<Flex>)>, Adapters<Flex>) {
    let layers: Vec<(Plain, Frozen<Flex>)> = [40, 16, 33]
        .map(|outputs| {
            let (weight, bias) = (random(outputs, INPUTS), random(1, outputs));
            let bias = Some(bias.reshape([outputs]));
            (weight.clone(), Frozen::lean(weight, bias, Precision::F32))
        })
        .into();
    let config = |trains_bias| {
        Config::Lora(LoraConfig {
            rank: RANK as u32,
            alpha: 2.0,
            dropout,
            start: None,
            use_dora: true,
            trains_bias,
        })
    };
    let modules = [("query", 40), ("value", 33)].map(|(role, outputs)| {
        let linear = LinearInfo {
            path: role.to_owned(),
            layer: Some(0),
            inputs: INPUTS,
            outputs,
            bias: true,
        };
        linear.module(&config(role == "value"))
    });
    let adapters = Adapters::new(config(true), modules.to_vec(), 5, &FlexDevice);
    let mut adapters = adapters.with_own(vec![config(false), config(true)]);
    let weight = |module: &dynalora_plugin_api::ModuleInfo| {
        let at = if module.path == "query" { 0 } else { 2 };
        let values = layers[at].0.clone().into_data().into_vec();
        Ok(values.expect("f32 values"))
    };
    adapters
        .put_on(&[&layers[0].1, &layers[2].1], weight, &FlexDevice)
        .expect("rows of some size");
    (layers, adapters)
}

/// Gives everything that trains other values than it starts with.
fn move_all(adapters: &mut Adapters<Flex>) {
    for module in 0..2 {
        for value in adapters.pair_mut(module).iter_mut() {
            let [rows, columns] = value.dims();
            *value = value.clone() + random(rows, columns) * 0.3;
        }
    }
}

fn run(
    adapters: &Adapters<Flex>,
    layers: &[(Plain, Frozen<Flex>)],
    x: &Plain,
    tracked: &[bool],
) -> (Pass<Flex>, Wide, Wide) {
    let mut pass = Pass::train(adapters, &[], tracked, Observe::default(), 9);
    let x = Tensor::from_inner(x.clone()).require_grad();
    let of = [Some(0), None, Some(1)];
    let layers: Vec<_> = layers.iter().map(|(_, frozen)| frozen).zip(of).collect();
    let y = pass.linear(x.clone(), &layers);
    (pass, x, y)
}

/// What PEFT's `DoraLinearLayer` and `DoraLinearVariant` compute, written as they have it.
#[test]
fn dora_is_pefts_own_formula_with_and_without_dropout() {
    for dropout in [0.0, 0.4] {
        let (layers, mut adapters) = scene(dropout);
        move_all(&mut adapters);
        for factor in [1.0, 0.25] {
            adapters.put_to_use(&[factor; 2], &[]);
            let x = random(50, INPUTS);
            let (pass, ours_x, ours) = run(&adapters, &layers, &x, &[true; 2]);
            let weights = random(50, 40 + 16 + 33);
            let loss = |y: &Wide| (y.clone() * Tensor::from_inner(weights.clone())).sum();
            let found = loss(&ours).backward();

            let x = Tensor::from_inner(x).require_grad();
            let tensors: Vec<_> = (adapters.pairs().iter())
                .map(|values| {
                    let tracked = |value: &Plain| Wide::from_inner(value.clone()).require_grad();
                    values.each_ref().map(tracked)
                })
                .collect();
            let mut outputs = Vec::new();
            for (at, (weight, frozen)) in layers.iter().enumerate() {
                let bias = frozen.bias.clone().expect("each has one").unsqueeze();
                let of_weight = |x: Wide| x.matmul(Tensor::from_inner(weight.clone()).transpose());
                let module = match at {
                    0 => 0,
                    2 => 1,
                    _ => {
                        outputs.push(of_weight(x.clone()) + Tensor::from_inner(bias));
                        continue;
                    }
                };
                let Tensors {
                    pair: [a, b],
                    magnitude,
                    bias: trained,
                } = tensors[module].clone();
                let scale = adapters.scale(module);
                let norms = |weight: Plain| weight.powi_scalar(2).sum_dim(1).sqrt();
                let share = b.clone().inner().matmul(a.clone().inner()) * scale;
                let norm = norms(weight.clone() + share);
                // A factor is one on what has been learnt.
                let of = |value: Wide, start: Plain| {
                    value * factor as f32 + Tensor::from_inner(start * (1.0 - factor as f32))
                };
                let magnitude = of(magnitude.expect("DoRA's"), norms(weight.clone()));
                let by = (magnitude / Tensor::from_inner(norm)).transpose();
                let bias = match trained {
                    Some(trained) => of(trained, bias.transpose()).transpose(),
                    None => Tensor::from_inner(bias),
                };
                let drop = pass.dropout_at(pass.adapter_sites[module], 0, dropout as f32);
                let left = Flex::dropout(x.clone(), drop);
                let lora = left.clone().matmul(a.transpose()).matmul(b.transpose()) * scale;
                let added = (by.clone() - 1.0) * of_weight(left) + by * lora;
                outputs.push(of_weight(x.clone()) + bias + added);
            }
            let theirs = Tensor::cat(outputs, 1);
            let expected = loss(&theirs).backward();
            let tolerance = burn::tensor::Tolerance::<f32>::rel_abs(1e-4, 2e-4);
            let same = |ours: Plain, theirs: Plain| {
                ours.into_data()
                    .assert_approx_eq(&theirs.into_data(), tolerance);
            };
            same(ours.inner(), theirs.inner());
            let gradient = |of: &Wide, found: &_| of.grad(found).expect("a gradient");
            same(gradient(&ours_x, &found), gradient(&x, &expected));
            for (ours, theirs) in pass.pairs.iter().zip(&tensors) {
                assert_eq!(ours.iter().count(), theirs.iter().count());
                for (ours, theirs) in ours.iter().zip(theirs.iter()) {
                    same(gradient(ours, &found), gradient(theirs, &expected));
                }
            }
        }
    }
}

#[test]
fn a_module_that_has_learnt_nothing_is_its_layer_and_one_that_is_inactive_keeps_what_it_learnt() {
    for dropout in [0.0, 0.4] {
        let (layers, mut adapters) = scene(dropout);
        let x = random(50, INPUTS);
        let bare: Vec<_> = layers.iter().map(|(_, frozen)| (frozen, None)).collect();
        let read = |y: Wide| y.inner().into_data().into_vec::<f32>().expect("f32");
        let of_layers = || {
            let mut pass = Pass::evaluate(&adapters, &[]);
            read(pass.linear(Tensor::from_inner(x.clone()), &bare))
        };
        let expected = of_layers();
        // Whether or not it trains, by the very same operations.
        let [active, inactive] =
            [[true; 2], [false; 2]].map(|tracked| read(run(&adapters, &layers, &x, &tracked).2));
        assert_eq!(active, inactive);
        for (found, expected) in active.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
        }
        move_all(&mut adapters);
        let [active, inactive] =
            [[true; 2], [false; 2]].map(|tracked| read(run(&adapters, &layers, &x, &tracked).2));
        assert_eq!(active, inactive);
        assert_ne!(active, expected);
        // Off, it is its layer again.
        adapters.put_to_use(&[0.0; 2], &[]);
        let off = read(run(&adapters, &layers, &x, &[false; 2]).2);
        for (found, expected) in off.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
        }
    }
}

#[test]
fn norms_are_found_anew_once_a_value_has_changed() {
    let (layers, mut adapters) = scene(0.0);
    let direct = |adapters: &Adapters<Flex>, module: usize| -> (Vec<f32>, f32) {
        let [a, b] = adapters.factors(module);
        let weight = &layers[2 * module].0;
        let whole = weight.clone() + b.matmul(a) * adapters.scale(module);
        let norms = whole.clone().powi_scalar(2).sum_dim(1).sqrt();
        let [magnitude, _] = adapters.beside_pair(module);
        let whole = whole * (magnitude.expect("DoRA's") / norms.clone());
        let change = (whole - weight.clone()).powi_scalar(2).sum();
        let norms = norms.into_data().into_vec().expect("f32 values");
        (norms, change.into_scalar())
    };
    let check = |adapters: &Adapters<Flex>| {
        for module in 0..2 {
            let (norms, change) = direct(adapters, module);
            let found = adapters.rows(module).expect("DoRA's").0.norms.clone();
            let found: Vec<f32> = found.into_data().into_vec().expect("f32 values");
            for (found, norm) in found.iter().zip(&norms) {
                assert!((found - norm).abs() < 1e-5 * norm, "{found}, not {norm}");
            }
            let squares: f32 = adapters.change_squares(module).into_scalar();
            assert!(
                (squares - change).abs() <= 1e-4 * change + 1e-6,
                "{squares}, not {change}"
            );
        }
    };
    check(&adapters);
    move_all(&mut adapters);
    check(&adapters);
    adapters.put_to_use(&[0.5, 3.0], &[]);
    check(&adapters);
    adapters.prune(1, &[true, false, true]);
    check(&adapters);
}
