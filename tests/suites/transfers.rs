//! What measuring costs: one transfer a step whatever is asked for, and nothing that is not. A suite of its own, for
//! what it counts is counted over the whole process.

use burn_flex::{Flex, FlexDevice};
use dynalora::allocation::{RawValue, Signal, Wanted};
use dynalora::data::{Batch, Label};
use dynalora::export;
use dynalora::kernel::reductions_taken;
use dynalora::model::{Model, Pretrained};
use dynalora::recipe::{ModelConfig, OptimizerState};
use dynalora::train::optimizer::{Optimizer, OptimizerConfig};
use dynalora::train::step::{self, StepPlan};
use dynalora::train::trainee::{Trainee, reads};
use dynalora_tests::{fixture, model_folder, plan};

const DEVICE: FlexDevice = FlexDevice;

#[test]
fn a_step_is_read_in_one_transfer_and_takes_only_the_reductions_asked_for() {
    let folder = fixture("tiny-bert");
    let recipe: ModelConfig =
        serde_json::from_value(serde_json::json!({"name": "tiny-bert"})).expect("a model");
    let pretrained = Pretrained::open(&model_folder(&folder), &recipe).expect("a whole model");
    let adapter = fixture("tiny-bert/golden/all-linear/random_b");
    let peft = export::read(&adapter, &pretrained.config).expect("an adapter");
    let modules = peft.modules(&pretrained.linears()).expect("modules");
    let model = Model::<Flex>::load(&pretrained, &modules, 2, &DEVICE).expect("a whole model");
    let trainee = Trainee {
        head: peft.head(&model.head, &DEVICE).expect("a head"),
        adapters: peft.adapters(modules, &DEVICE).expect("an adapter"),
        model,
    };
    let modules = trainee.adapters.modules.len() as u64;
    let mut optimizer = Optimizer::new(
        OptimizerConfig {
            rate: 0.01,
            loraplus_lr_ratio: 1.0,
            loraplus_lr_embedding: None,
            head_rate: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            schedule: dynalora::recipe::LearningRateSchedule::Constant,
            warmup_steps: 0,
            total_steps: 9,
            state: OptimizerState::Global,
        },
        modules as usize,
    );
    let batch = || Batch {
        images: None,
        words: None,
        ids: (3..15).collect(),
        type_ids: vec![0; 12],
        positions: (0..5).chain(0..7).collect(),
        offsets: vec![0, 5, 12],
        labels: vec![Label::Class(0), Label::Class(1)],
        indices: vec![0, 1],
    };
    let active = vec![true; modules as usize];
    let mut moved = trainee.clone();
    // Transfers and reductions of a step with two micro-batches.
    let mut counted = |signals: &[Signal], raw: &[RawValue], components: bool| {
        let wanted = Wanted {
            signals: signals.to_vec(),
            raw: raw.to_vec(),
            components,
        };
        let plan = StepPlan {
            step: 2,
            ..plan(&active, &wanted)
        };
        let before = (reads(), reductions_taken());
        let batches = [batch(), batch()];
        let result = step::run(&trainee, &batches, &plan, None, Some(&optimizer), &DEVICE);
        let after = (reads() - before.0, reductions_taken() - before.1);
        for (module, gradients) in result.expect("a step").gradients.into_iter().enumerate() {
            let pair = moved.adapters.pair_mut(module);
            optimizer.update_module(
                module,
                0,
                [1.0; 2],
                None,
                pair,
                gradients.expect("a gradient"),
                1.0,
            );
        }
        after
    };
    // Norms of gradients are always read, for clipping: of A and B of each module, and of the head's two tensors.
    let clipping = 2 * modules + 2;
    assert_eq!(counted(&[], &[], false), (1, clipping));
    // In the two micro-batches. One input is measured once for all that read it: four times in the first layer, five
    // times in the second, whose queries are run apart, and once in the pooler.
    let (of_modules, of_inputs) = (2 * modules, 2 * (4 + 5 + 1));
    let mut all = clipping;
    for (signals, reductions) in [
        (
            &[Signal::ActivationL1, Signal::ActivationL2][..],
            of_modules,
        ),
        (&[Signal::InputL2], of_inputs),
        (&[Signal::OutputGradientL2], of_modules),
        (
            &[Signal::GradientDotWeight, Signal::GradientDotWeightAbs],
            2 * modules,
        ),
        (&[Signal::Fisher], 2 * of_modules),
        // Taken already, or products of small matrices.
        (&[Signal::GradientL1, Signal::GradientL2], 0),
        (&[Signal::DeltaL2, Signal::WeightL2, Signal::UpdateL2], 0),
    ] {
        let found = counted(signals, &[], false);
        assert_eq!(found, (1, clipping + reductions), "{signals:?}");
        all += reductions;
    }
    let every = [
        Signal::ActivationL1,
        Signal::ActivationL2,
        Signal::DeltaL2,
        Signal::GradientL1,
        Signal::GradientL2,
        Signal::WeightL2,
        Signal::InputL2,
        Signal::OutputGradientL2,
        Signal::GradientDotWeight,
        Signal::GradientDotWeightAbs,
        Signal::Fisher,
        Signal::UpdateL2,
    ];
    let columns = [RawValue::InputColumnL2];
    assert_eq!(counted(&every, &columns, true), (1, all + of_inputs));
    // Raw values that are no reductions are copied one by one.
    let (transfers, reductions) = counted(&[], &[RawValue::Activation], false);
    assert_eq!((transfers, reductions), (1 + modules, clipping));
}
