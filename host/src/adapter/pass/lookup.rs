//! Tables of embeddings in a pass: layers over inputs of which a token has one.

use burn::tensor::{IndexingUpdateOp, Int, Tensor};

use super::{Pass, Weight, delta_squares};
use crate::kernel::{Ad, Dropout, Kernels};

/// What tokens have of a table of embeddings.
#[derive(Clone, Debug)]
pub struct Looked<B: Kernels> {
    /// The entry of each, `[tokens]`.
    pub ids: Tensor<B, 1, Int>,
    /// The entry that no gradient goes back to: PyTorch's `padding_idx`.
    pub still: Option<usize>,
}

impl<B: Kernels> Looked<B> {
    /// `Σ_e ‖g_e‖²` over the examples e, whose tokens lie between consecutive offsets, where `g_e` has for each entry the
    /// sum of the rows of `values [tokens, rank]` whose tokens have it: `Σ v_t·v_u` over the tokens of one entry.
    pub(in crate::adapter) fn example_squares(
        &self,
        values: &Tensor<B, 2>,
        examples: &[usize],
    ) -> Tensor<B, 1> {
        let of_examples = examples.windows(2).map(|ends| {
            let tokens = ends[1] - ends[0];
            let mut values = values.clone().slice_dim(0, ends[0]..ends[1]);
            let ids = self.ids.clone().slice_dim(0, ends[0]..ends[1]);
            if let Some(still) = self.still {
                let moves = ids.clone().not_equal_elem(still as i64).float();
                values = values * moves.unsqueeze_dim::<2>(1);
            }
            let down = ids.clone().reshape([tokens, 1]).repeat_dim(1, tokens);
            let across = ids.reshape([1, tokens]).repeat_dim(0, tokens);
            let same = down.equal(across).float();
            (values.clone().matmul(values.transpose()) * same).sum()
        });
        Tensor::cat(of_examples.collect(), 0).sum()
    }

    /// How many tokens have each of so many entries, `[entries]`.
    fn counts(&self, entries: usize) -> Tensor<B, 1> {
        let device = self.ids.device();
        let ones = Tensor::ones([self.ids.dims()[0]], &device);
        let counts = Tensor::<B, 1>::zeros([entries], &device);
        counts.select_assign(0, self.ids.clone(), ones, IndexingUpdateOp::Add)
    }
}

impl<B: Kernels> Pass<B> {
    /// What tokens have of a `table [entries, features]`, `factor` times, with what stands beside it where it is module
    /// `index`: `[tokens, features]`, `factor·(W + s·(BA)ᵀ)[ids]`. As with PEFT, nothing drops out.
    pub fn lookup(
        &mut self,
        table: &Tensor<B, 2>,
        looked: &Looked<B>,
        factor: Option<f32>,
        index: Option<usize>,
    ) -> Tensor<Ad<B>, 2> {
        let of_table = table.clone().select(0, looked.ids.clone());
        let of_table = match factor {
            Some(factor) => of_table * factor,
            None => of_table,
        };
        let Some(index) = index else {
            return Tensor::from_inner(of_table);
        };
        self.looked_up(index, table.dims()[0], looked);
        let mut side = self.side(index, &Weight::Table(table.clone()), looked.ids.dims()[0]);
        side.lora.scale *= factor.unwrap_or(1.0);
        side.lora.dropout = Dropout::NONE;
        let (a, b) = (side.lora.a.clone(), side.lora.b.clone());
        let of_a = B::lookup(a, looked.ids.clone(), looked.still);
        let share = of_a.clone().matmul(b.transpose()) * side.lora.scale;
        let whole = Tensor::from_inner(of_table.clone()) + share;
        let columns = 0..whole.dims()[1];
        let before = side.magnitude.is_some();
        let before = before.then(|| (whole.clone().inner(), columns.clone()));
        let y = match &side.magnitude {
            Some(magnitude) => B::per_column(whole, Some(magnitude.factors.clone()), None),
            None => whole,
        };
        let of_a = of_a.inner();
        if self.observes_outputs() {
            let y = y.clone().inner();
            let delta = self.observe.delta.then(|| match &side.magnitude {
                Some(_) => B::sums(y.clone() - of_table, columns.clone()).slice_dim(0, 1..2),
                None => delta_squares(of_a.clone(), side.lora.b.clone().inner(), side.lora.scale),
            });
            self.measure(index, y, columns.clone(), delta);
        }
        match self.sense.as_ref().filter(|_| !self.beside) {
            Some(sense) => {
                let mut sensor = sense.of(looked.clone().into(), false);
                let tensors = &self.pairs[index];
                sensor.add(index, columns, tensors, &side, (Some(of_a), before));
                sensor.tap(y)
            }
            None => y,
        }
    }

    /// Takes the reductions of the input of a table, of which each token has a single one, and that is 1.
    fn looked_up(&mut self, index: usize, entries: usize, looked: &Looked<B>) {
        let (observe, tokens) = (self.observe, looked.ids.dims()[0]);
        if !(observe.input || observe.input_columns) {
            return;
        }
        let sums = || Tensor::full([2], tokens as f32, &looked.ids.device());
        let observed = self.observed(index, tokens);
        observed.input = observe.input.then(sums);
        observed.input_columns = observe.input_columns.then(|| looked.counts(entries));
    }
}
