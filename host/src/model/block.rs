//! A transformer layer, of whichever family.

use std::cell::OnceCell;

use burn::tensor::{Int, Tensor};

use super::architecture::{Architecture, NormPart, Order};
use super::linear::{Linear, Source};
use super::norm::load_norm;
use crate::adapter::{Pass, Site};
use crate::error::Result;
use crate::kernel::{Ad, Angles, AttentionLayout, Buckets, Kernels, Norm, Projected, Sequences};

/// A layer, frozen; what trains comes in with the [`Pass`].
#[derive(Clone, Debug)]
pub(super) struct Block<B: Kernels> {
    /// Its number, from 0.
    index: u32,
    /// Query, key and value, or one layer that gives them side by side.
    projections: Vec<Linear<B>>,
    head_norms: Option<[Norm<B>; 2]>,
    output: Linear<B>,
    /// One layer, or the gate and what it lets through.
    inner: Vec<Linear<B>>,
    down: Linear<B>,
    /// The attention's, if it has one, and the feed-forward's.
    norms: (Option<Norm<B>>, Norm<B>),
    /// Of what each sublayer gives.
    output_norms: Option<[Norm<B>; 2]>,
    /// Whether a token sees those alone that are near.
    local: bool,
}

/// What layers run on beside the hidden states: the same in all of them, and made once for a batch.
pub struct Around<'a, B: Kernels> {
    pub(super) architecture: &'a Architecture,
    /// Where the tokens' sequences lie.
    pub(super) sequences: &'a Sequences,
    /// Where the tokens lie that are still known where attention is local: fewer than all of a text that is gone on with.
    pub(super) near: Option<Sequences>,
    /// The relative positions, `[rows, hidden]`, where scores have them.
    pub(super) relative: Option<&'a Tensor<B, 2>>,
    /// By how much each token's heads are turned, where they are: in most layers, and where attention is local.
    pub(super) angles: [Option<Angles<B>>; 2],
    /// How queries of all tokens meet their keys, and those of some, which are the same ones in all layers; again in
    /// most layers, and where attention is local.
    pub(super) layouts: [[OnceCell<AttentionLayout<B>>; 2]; 2],
}

impl<B: Kernels> Around<'_, B> {
    /// How these queries meet the keys of all tokens, where attention is `local` or elsewhere.
    fn layout(&self, queries: Sequences, local: bool) -> &AttentionLayout<B> {
        let which = usize::from(queries != *self.sequences);
        let shape = self.architecture.block.attention.shape_where(local);
        let keys = self.near.as_ref().filter(|_| local);
        let keys = keys.unwrap_or(self.sequences);
        self.layouts[usize::from(local)][which].get_or_init(|| {
            let mut layout = AttentionLayout::new(queries, keys.clone(), shape);
            let relative = self.architecture.block.attention.relative.as_ref();
            layout.buckets = relative.map(|relative| {
                let longest = self.sequences.longest().max(1);
                Buckets::new(longest, |distance| relative.row(distance))
            });
            layout
        })
    }
}

/// One token of each sequence.
pub(super) struct Picked<'a, B: Kernels> {
    /// Where they lie, `[sequences]`.
    pub rows: &'a Tensor<Ad<B>, 1, Int>,
    /// By how much their heads are turned.
    pub angles: Option<&'a Angles<B>>,
}

impl<B: Kernels> Block<B> {
    /// Loads layer `index`, whose linears are these modules.
    pub fn load(
        architecture: &Architecture,
        source: Source<'_>,
        index: usize,
        modules: &[Option<usize>],
        device: &B::Device,
    ) -> Result<Self> {
        let parts = &architecture.block;
        let of_layer = architecture.linears_of(index).zip(parts.linears());
        let linears = of_layer
            .zip(modules)
            .map(|((info, part), module)| Linear::load(source, &info, part.bias, *module, device));
        let mut linears = linears.collect::<Result<Vec<_>>>()?.into_iter();
        let mut take = |count: usize| linears.by_ref().take(count).collect::<Vec<_>>();
        let projections = take(parts.attention.projections.len());
        let output = take(1);
        let inner = take(parts.feed_forward.inner.len());
        let down = take(1);
        let norm = |part: &NormPart, features: usize| {
            let name = format!("{}.{index}.{}", architecture.layer_path, part.name);
            load_norm(source, &name, part, features, device)
        };
        let both = |[first, second]: &[NormPart; 2], features: usize| {
            Ok([norm(first, features)?, norm(second, features)?])
        };
        let attention = &parts.attention;
        let of_heads = attention.head_norms.as_ref();
        let of_heads = of_heads.map(|norms| both(norms, attention.shape.head_size));
        let one = |mut linears: Vec<Linear<B>>| linears.pop().expect("one was taken");
        let [of_attention, of_feed_forward] = &parts.norms;
        let bare = parts.first_bare && index == 0;
        let of_attention = (!bare).then(|| norm(of_attention, architecture.hidden));
        let of_outputs = parts.output_norms.as_ref();
        let of_outputs = of_outputs.map(|norms| both(norms, architecture.hidden));
        Ok(Block {
            index: index as u32,
            projections,
            head_norms: of_heads.transpose()?,
            output: one(output),
            inner,
            down: one(down),
            norms: (
                of_attention.transpose()?,
                norm(of_feed_forward, architecture.hidden)?,
            ),
            output_norms: of_outputs.transpose()?,
            local: attention.local_in(index).is_some(),
        })
    }

    /// Every linear layer of it.
    pub fn linears(&self) -> impl Iterator<Item = &Linear<B>> {
        let others = [&self.output, &self.down];
        self.projections.iter().chain(&self.inner).chain(others)
    }

    /// All tokens' hidden states from all tokens'.
    pub fn forward(
        &self,
        x: Tensor<Ad<B>, 2>,
        around: &Around<'_, B>,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let read = self.read(x.clone(), around);
        let projected = pass.linear(read, &parts(&self.projections));
        let projected = self.placed(projected, Holds::All, self.angles(around), around);
        let queries = around.sequences.clone();
        self.finish(Projected::Joint(projected), x, queries, around, pass)
    }

    /// The picked tokens' hidden states, `[sequences, hidden]`, from all tokens': queries, output and feed-forward of
    /// the others are nowhere read, except by a scorer.
    pub fn picked(
        &self,
        x: Tensor<Ad<B>, 2>,
        picked: &Picked<'_, B>,
        around: &Around<'_, B>,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let read = self.read(x.clone(), around);
        let residual = x.clone().select(0, picked.rows.clone());
        let queries = Sequences::single(around.sequences.count());
        match &self.projections[..] {
            [query, pairs @ ..] if !pairs.is_empty() => {
                let pairs = pass.linear(read.clone(), &parts(pairs));
                let pairs = self.placed(pairs, Holds::Pairs, self.angles(around), around);
                if pass.observes() {
                    self.measure(&x, &read, Some(query), &pairs, around, pass);
                }
                let read = read.select(0, picked.rows.clone());
                pass.unobserved(|pass| {
                    let queries_of = pass.linear(read, &[query.parts()]);
                    let queries_of = self.placed(queries_of, Holds::Queries, picked.angles, around);
                    let projected = Projected::Split {
                        queries: queries_of,
                        pairs,
                    };
                    self.finish(projected, residual, queries, around, pass)
                })
            }
            joint => {
                // One layer gives all three: it is run for all tokens.
                let all = pass.linear(read.clone(), &parts(joint));
                let all = self.placed(all, Holds::All, self.angles(around), around);
                if pass.observes() {
                    self.measure(&x, &read, None, &all, around, pass);
                }
                let (width, columns) = (around.architecture.block.attention.shape, all.dims()[1]);
                let width = width.query_width();
                let queries_of = all.clone().select(0, picked.rows.clone());
                let projected = Projected::Split {
                    queries: queries_of.slice_dim(1, 0..width),
                    pairs: all.slice_dim(1, width..columns),
                };
                pass.unobserved(|pass| self.finish(projected, residual, queries, around, pass))
            }
        }
    }

    /// The hidden states of tokens that follow those whose keys and values are `before`; theirs are added to them, and
    /// where attention is local those go that the next token does not see. `around` has all of their sequence, and by how
    /// much the new tokens are turned.
    pub fn extend(
        &self,
        x: Tensor<Ad<B>, 2>,
        before: &mut Option<Tensor<Ad<B>, 2>>,
        around: &Around<'_, B>,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let read = self.read(x.clone(), around);
        let projected = pass.linear(read, &parts(&self.projections));
        let projected = self.placed(projected, Holds::All, self.angles(around), around);
        let shape = around.architecture.block.attention.shape_where(self.local);
        let ([tokens, columns], width) = (projected.dims(), shape.query_width());
        let pairs = projected.clone().slice_dim(1, width..columns);
        let pairs = match before.take() {
            Some(before) => Tensor::cat(vec![before, pairs], 0),
            None => pairs,
        };
        let known = pairs.dims()[0];
        *before = Some(match shape.reach.filter(|reach| *reach < known) {
            Some(reach) => pairs.clone().slice_dim(0, known - reach..known),
            None => pairs.clone(),
        });
        let projected = Projected::Split {
            queries: projected.slice_dim(1, 0..width),
            pairs,
        };
        self.finish(projected, x, Sequences::new(&[0, tokens]), around, pass)
    }

    /// What the attention reads of the hidden states.
    fn read(&self, x: Tensor<Ad<B>, 2>, around: &Around<'_, B>) -> Tensor<Ad<B>, 2> {
        match (around.architecture.block.order, &self.norms.0) {
            (Order::PreNorm, Some(norm)) => B::add_norm(x, None, norm),
            _ => x,
        }
    }

    /// Keys and queries, `[rows, k | q]`, of relative positions, by the projections of the tokens'. They are of no example,
    /// and nothing is measured of them.
    fn positions(
        &self,
        relative: Tensor<B, 2>,
        dropout: f32,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let site = pass.dropout(Site::Positions(self.index), relative.dims()[0], dropout);
        let relative = B::dropout(Tensor::from_inner(relative), site);
        let [query, key, ..] = &self.projections[..] else {
            unreachable!("queries and keys are projected apart");
        };
        pass.unmeasured(|pass| pass.linear(relative, &[key.parts(), query.parts()]))
    }

    /// By how much each token's heads are turned.
    fn angles<'a>(&self, around: &'a Around<'_, B>) -> Option<&'a Angles<B>> {
        around.angles[usize::from(self.local)].as_ref()
    }

    /// What the sublayer number `which` gives, as it is added to the residual.
    fn given(&self, x: Tensor<Ad<B>, 2>, which: usize) -> Tensor<Ad<B>, 2> {
        match &self.output_norms {
            Some(norms) => B::add_norm(x, None, &norms[which]),
            None => x,
        }
    }

    /// Measures the modules that [`picked`](Self::picked) runs for one token a sequence, for all tokens: beside the
    /// graph, so that gradients and dropout are those of a pass that measures nothing. `projected` is what was run for
    /// all tokens already: keys and values where there is a `query` of its own, else all three.
    fn measure(
        &self,
        x: &Tensor<Ad<B>, 2>,
        read: &Tensor<Ad<B>, 2>,
        query: Option<&Linear<B>>,
        projected: &Tensor<Ad<B>, 2>,
        around: &Around<'_, B>,
        pass: &mut Pass<B>,
    ) {
        let detached = |tensor: &Tensor<Ad<B>, 2>| Tensor::from_inner(tensor.clone().inner());
        let is_module = |linear: &Linear<B>| linear.module.is_some();
        let mut rest = [&self.output, &self.down].into_iter().chain(&self.inner);
        let of_rest = rest.any(is_module);
        if !of_rest && !query.is_some_and(is_module) {
            return;
        }
        let (x, read, projected) = (detached(x), detached(read), detached(projected));
        let outputs = pass.observes_outputs();
        pass.beside(|pass| {
            let projected = match query {
                Some(query) if !outputs && !of_rest => {
                    return pass.inputs(&read, &[query.parts()]);
                }
                Some(query) => {
                    let queries = pass.linear(read, &[query.parts()]);
                    Projected::Split {
                        queries: self.placed(queries, Holds::Queries, self.angles(around), around),
                        pairs: projected,
                    }
                }
                None => Projected::Joint(projected),
            };
            if of_rest {
                let queries = around.sequences.clone();
                let (inner, _) = self.inner(projected, x, queries, around, pass);
                // Nobody reads what comes after.
                match outputs {
                    true => drop(pass.linear(inner, &[self.down.parts()])),
                    false => pass.inputs(&inner, &[self.down.parts()]),
                }
            }
        });
    }

    /// Normalises the heads of queries and keys and turns them by their positions, where the family does.
    fn placed(
        &self,
        x: Tensor<Ad<B>, 2>,
        holds: Holds,
        angles: Option<&Angles<B>>,
        around: &Around<'_, B>,
    ) -> Tensor<Ad<B>, 2> {
        let shape = around.architecture.block.attention.shape;
        let [queries, keys] = match holds {
            Holds::All => [shape.query_width(), shape.pair_width()],
            Holds::Queries => [shape.query_width(), 0],
            Holds::Pairs => [0, shape.pair_width()],
        };
        let x = match &self.head_norms {
            None => x,
            Some([of_queries, of_keys]) => {
                let columns = x.dims()[1];
                let part = |from: usize, to: usize| x.clone().slice_dim(1, from..to);
                let mut normed = Vec::new();
                if queries > 0 {
                    normed.push(norm_heads(part(0, queries), of_queries, shape.head_size));
                }
                if keys > 0 {
                    let part = part(queries, queries + keys);
                    normed.push(norm_heads(part, of_keys, shape.head_size));
                }
                if queries + keys < columns {
                    normed.push(part(queries + keys, columns));
                }
                Tensor::cat(normed, 1)
            }
        };
        match angles {
            None => x,
            Some(angles) => B::rotate(x, queries + keys, angles),
        }
    }

    /// From queries, keys and values to the hidden states of the queries' tokens, whose own are `residual`.
    fn finish(
        &self,
        projected: Projected<B>,
        residual: Tensor<Ad<B>, 2>,
        queries: Sequences,
        around: &Around<'_, B>,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let (inner, x) = self.inner(projected, residual, queries, around, pass);
        let mut inner = pass.linear(inner, &[self.down.parts()]);
        let Architecture { block, dropout, .. } = around.architecture;
        if !block.feed_forward.drops_inside {
            let rows = inner.dims()[0];
            let site = pass.dropout(Site::FeedForward(self.index), rows, dropout.hidden);
            inner = B::dropout(inner, site);
        }
        match block.order {
            Order::PostNorm => B::add_norm(inner, Some(x), &self.norms.1),
            Order::PreNorm => self.given(inner, 1) + x,
        }
    }

    /// The same up to the input of the feed-forward's second half, and what is added to its output.
    fn inner(
        &self,
        projected: Projected<B>,
        residual: Tensor<Ad<B>, 2>,
        queries: Sequences,
        around: &Around<'_, B>,
        pass: &mut Pass<B>,
    ) -> (Tensor<Ad<B>, 2>, Tensor<Ad<B>, 2>) {
        let Architecture { block, dropout, .. } = around.architecture;
        let site = Site::Attention(self.index);
        let at_weights = pass.dropout(site, queries.count(), dropout.attention);
        let layout = around.layout(queries, self.local);
        let attended = match around.relative {
            None => B::packed_attention(projected, layout, at_weights),
            Some(relative) => {
                let positions = self.positions(relative.clone(), dropout.hidden, pass);
                B::disentangled_attention(projected, positions, layout, at_weights)
            }
        };
        let attended = pass.linear(attended, &[self.output.parts()]);
        let at_output = match block.attention.drops_output_as_weights {
            true => dropout.attention,
            false => dropout.hidden,
        };
        let site = Site::AttentionOutput(self.index);
        let at_output = pass.dropout(site, attended.dims()[0], at_output);
        let attended = B::dropout(attended, at_output);
        let (x, read) = match (block.order, &self.norms.0) {
            (Order::PostNorm, Some(norm)) => {
                let x = B::add_norm(attended, Some(residual), norm);
                (x.clone(), x)
            }
            (Order::PostNorm, None) => {
                let x = attended + residual;
                (x.clone(), x)
            }
            (Order::PreNorm, _) => {
                let x = self.given(attended, 0) + residual;
                (x.clone(), B::add_norm(x, None, &self.norms.1))
            }
        };
        let inner = pass.linear(read, &parts(&self.inner));
        let activation = block.feed_forward.activation;
        let mut inner = match block.feed_forward.gated() {
            false => B::activation(inner, activation),
            true => B::gated(inner, activation),
        };
        if block.feed_forward.drops_inside {
            let rows = inner.dims()[0];
            let site = pass.dropout(Site::FeedForward(self.index), rows, dropout.hidden);
            inner = B::dropout(inner, site);
        }
        (inner, x)
    }
}

/// What the columns of a projection are.
#[derive(Clone, Copy)]
enum Holds {
    /// `[q | k | v]`
    All,
    /// `q`
    Queries,
    /// `[k | v]`
    Pairs,
}

fn parts<B: Kernels>(linears: &[Linear<B>]) -> Vec<(&crate::kernel::Frozen<B>, Option<usize>)> {
    linears.iter().map(Linear::parts).collect()
}

/// Normalises each head of `x`, `[tokens, heads · size]`.
fn norm_heads<B: Kernels>(x: Tensor<Ad<B>, 2>, norm: &Norm<B>, size: usize) -> Tensor<Ad<B>, 2> {
    let [tokens, width] = x.dims();
    let heads = x.reshape([tokens * width / size, size]);
    B::add_norm(heads, None, norm).reshape([tokens, width])
}
