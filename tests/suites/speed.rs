//! Speed as a ratio to something measured in the same breath: what is lost here is lost everywhere.
//!
//! Each side's best of many alternating runs is taken, so that a busy machine slows the test down and does not
//! fail it.

use std::time::Instant;

use burn::tensor::{Distribution, Tensor};
use burn_flex::Flex;
use dynalora::kernel::{Ad, Branch, Frozen, Kernels, Precision};
use gemm::Parallelism;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn random(rows: usize, columns: usize) -> Tensor<Flex, 2> {
    let device = Default::default();
    Tensor::random([rows, columns], Distribution::Normal(0.0, 1.0), &device)
}

/// A bare product `x·Wᵀ` of the crate `gemm` into a buffer that is there already.
fn bare(x: &[f32], weight: &[f32], out: &mut [f32], [m, n, k]: [usize; 3]) {
    let threads = rayon::current_num_threads();
    // SAFETY: the slices have the sizes m × k, n × k and m × n.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            x.as_ptr(),
            1,
            k as isize,
            weight.as_ptr(),
            k as isize,
            1,
            0.0f32,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(threads),
        );
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

/// The frozen linear layer, with its new output and its part in the graph, against the bare product.
#[test]
fn a_linear_layer_keeps_nine_tenths_of_a_bare_product() {
    if cfg!(debug_assertions) {
        eprintln!("skipped: only an optimised build says anything about speed");
        return;
    }
    // On the pool's own threads, as training is.
    rayon::scope(|_| {
        let mut slow = Vec::new();
        // Tokens, out, in: MiniLM's and BERT-base's layers.
        for [m, n, k] in [
            [64, 384, 384],
            [512, 1536, 384],
            [512, 384, 1536],
            [2048, 384, 384],
            [2048, 1536, 384],
            [512, 768, 768],
            [512, 3072, 768],
            [512, 768, 3072],
        ] {
            let (x, weight) = (random(m, k), random(n, k));
            let values = |x: &Tensor<Flex, 2>| x.to_data().into_vec::<f32>().expect("f32 values");
            let (bare_x, bare_weight) = (values(&x), values(&weight));
            let mut out = vec![0.0; m * n];
            let frozen = Frozen::new(weight, None, Precision::F32);
            let (mut ours, mut theirs) = (f64::MAX, f64::MAX);
            // As long as it takes, up to a bound: noise goes away, a slow kernel stays slow.
            for round in 0..400 {
                if round >= 20 && theirs >= 0.9 * ours {
                    break;
                }
                theirs = theirs.min(seconds(|| bare(&bare_x, &bare_weight, &mut out, [m, n, k])));
                let branch = Branch {
                    frozen: &frozen,
                    lora: None,
                };
                let x = Tensor::<Ad<Flex>, 2>::from_inner(x.clone());
                ours = ours.min(seconds(|| drop(Flex::linears(x, vec![branch]))));
            }
            let share = theirs / ours;
            println!("{m} × {n} × {k}: {share:.2} of the bare product's speed");
            if share < 0.9 {
                slow.push(format!("{m} × {n} × {k}: {share:.2}"));
            }
        }
        assert!(slow.is_empty(), "below 0.9: {slow:?}");
    });
}
