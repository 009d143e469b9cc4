//! The base model: embeddings, transformer layers and the norm behind them, all frozen.

use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::architecture::{Architecture, NormPart, Reads};
use super::block::{Around, Block, Picked};
use super::embeddings::{Embedder, Tokens};
use super::linear::{Linear, Source};
use super::norm::load_norm;
use crate::adapter::{Pass, Site, Weight};
use crate::error::Result;
use crate::kernel::{Ad, Angles, Kernels, Norm, Sequences};

/// A packed batch, on the device.
#[derive(Clone, Debug)]
pub struct Input<B: Kernels> {
    /// What its tokens are made of.
    pub tokens: Tokens<B>,
    /// Where each sequence lies.
    pub sequences: Sequences,
}

/// Whole numbers on a device, `[values]`.
pub fn whole_numbers<B: Backend>(
    values: impl Iterator<Item = usize>,
    device: &B::Device,
) -> Tensor<B, 1, Int> {
    let values: Vec<i64> = values.map(|value| value as i64).collect();
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), device)
}

/// The rows that a head reads, which may be on the device already.
fn uploaded<B: Kernels>(
    rows: &[usize],
    pass: &Pass<B>,
    device: &B::Device,
) -> Tensor<Ad<B>, 1, Int> {
    match pass.uploaded.rows.clone() {
        Some(rows) => Tensor::from_inner(rows),
        None => whole_numbers(rows.iter().copied(), device),
    }
}

/// Keys and values of a text's tokens so far, so that each is computed once. Where attention is local, of those that
/// the next token sees.
#[derive(Clone, Debug)]
pub struct Past<B: Kernels> {
    /// Of each layer, `[tokens, k | v]`.
    pairs: Vec<Option<Tensor<Ad<B>, 2>>>,
    tokens: usize,
}

impl<B: Kernels> Past<B> {
    /// Of how many tokens each layer has keys and values.
    pub fn known(&self) -> Vec<usize> {
        let known =
            |pairs: &Option<Tensor<Ad<B>, 2>>| pairs.as_ref().map_or(0, |pairs| pairs.dims()[0]);
        self.pairs.iter().map(known).collect()
    }
}

/// Embeddings, layers and norms; what trains comes in with the [`Pass`].
#[derive(Clone, Debug)]
pub struct Base<B: Kernels> {
    architecture: Architecture,
    embedder: Embedder<B>,
    blocks: Vec<Block<B>>,
    final_norm: Option<Norm<B>>,
    /// The relative positions, `[rows, hidden]`, where scores have them.
    relative: Option<Tensor<B, 2>>,
}

impl<B: Kernels> Base<B> {
    /// Loads the model. `module_of` tells which tables of embeddings and linears, in forward order, are adapted modules.
    pub(super) fn load(
        architecture: &Architecture,
        source: Source<'_>,
        module_of: &[Option<usize>],
        device: &B::Device,
    ) -> Result<Self> {
        let hidden = architecture.hidden;
        let norm = |part: &NormPart| load_norm(source, part.name, part, hidden, device);
        let width = architecture.block.linears().count();
        let (tables, module_of) = module_of.split_at(architecture.tables().count());
        let blocks = module_of
            .chunks(width)
            .take(architecture.layers)
            .enumerate()
            .map(|(index, modules)| Block::load(architecture, source, index, modules, device));
        let relative = architecture.block.attention.relative.as_ref();
        let relative = relative.map(|relative| {
            let name = format!("{}{}.weight", source.prefix, relative.table.name);
            let shape = [relative.table.entries, hidden];
            let table = source.weights.tensor::<B, 2>(&name, shape, device)?;
            Ok(match relative.norm.as_ref().map(norm).transpose()? {
                Some(norm) => B::add_norm(Tensor::from_inner(table), None, &norm).inner(),
                None => table,
            })
        });
        Ok(Base {
            relative: relative.transpose()?,
            embedder: Embedder::load(&architecture.embeddings, source, hidden, tables, device)?,
            blocks: blocks.collect::<Result<_>>()?,
            final_norm: architecture.final_norm.as_ref().map(norm).transpose()?,
            architecture: architecture.clone(),
        })
    }

    /// Every linear layer.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear<B>> {
        self.blocks.iter().flat_map(Block::linears)
    }

    /// The tables of embeddings that are modules, with the number of each.
    pub(super) fn tables(&self) -> impl Iterator<Item = (usize, Weight<B>)> {
        self.embedder.modules()
    }

    /// Number of layers.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// The table of word embeddings, `[vocabulary, hidden]`, of a model that reads texts.
    pub(super) fn words(&self) -> Option<Tensor<B, 2>> {
        self.embedder.words()
    }

    /// The hidden states of all tokens after the first `depth` layers, `[tokens, hidden]`.
    pub fn prefix(&self, input: &Input<B>, depth: usize, pass: &mut Pass<B>) -> Tensor<Ad<B>, 2> {
        let x = self.embed(input, pass);
        if depth == 0 {
            return x;
        }
        let around = self.around(&input.sequences, &x.device());
        self.between(x, 0..depth, &around, pass)
    }

    /// What layers run on beside the hidden states of a batch with these sequences.
    pub fn around<'a>(&'a self, sequences: &'a Sequences, device: &B::Device) -> Around<'a, B> {
        let positions = (0..sequences.count()).flat_map(|i| 0..sequences.range(i).len());
        self.around_at(sequences, positions, device)
    }

    /// The hidden states of all tokens behind these `layers`, `[tokens, hidden]`, from those in front of them.
    pub fn between(
        &self,
        mut x: Tensor<Ad<B>, 2>,
        layers: Range<usize>,
        around: &Around<'_, B>,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        for block in &self.blocks[layers] {
            x = block.forward(x, around, pass);
        }
        x
    }

    /// The last hidden states of all tokens, `[tokens, hidden]`, from those after the first `depth` layers.
    pub fn all(
        &self,
        x: Tensor<Ad<B>, 2>,
        depth: usize,
        sequences: &Sequences,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let around = self.around(sequences, &x.device());
        self.between(x, depth..self.depth(), &around, pass)
    }

    /// The last hidden states of the tokens that lie in these `rows` of the batch, `[rows, hidden]`, behind the last norm.
    pub fn some(
        &self,
        x: Tensor<Ad<B>, 2>,
        depth: usize,
        sequences: &Sequences,
        rows: &[usize],
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let x = self.all(x, depth, sequences, pass);
        let rows = uploaded(rows, pass, &x.device());
        self.normed(x.select(0, rows))
    }

    /// The last hidden states of what the head reads, of all tokens' after the first `depth` layers: `[sequences, hidden]`,
    /// or of each token. Where that is one token of each sequence, nothing else is computed.
    pub fn picked(
        &self,
        x: Tensor<Ad<B>, 2>,
        depth: usize,
        sequences: &Sequences,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let device = x.device();
        let tokens = match self.architecture.head.reads {
            Reads::First | Reads::Last => self.one_of_each(sequences).unwrap_or_default(),
            Reads::Mean { after } => {
                let x = self.all(x, depth, sequences, pass);
                let read = (0..sequences.count()).map(|i| {
                    let Range { start, end } = sequences.range(i);
                    start + after..end
                });
                return B::means(self.normed(x), read.collect());
            }
            Reads::Each => {
                let x = self.all(x, depth, sequences, pass);
                return self.normed(x);
            }
        };
        let rows = uploaded(&tokens, pass, &device);
        let x = match self.blocks.split_last() {
            Some((last, below)) if depth <= below.len() => {
                let around = self.around(sequences, &device);
                let x = self.between(x, depth..below.len(), &around, pass);
                let starts = sequences.firsts();
                let positions = tokens.iter().zip(starts).map(|(at, start)| at - start);
                let local = self.is_local(below.len());
                let of_picked = self.angles_of(positions, local, &device);
                let picked = Picked {
                    rows: &rows,
                    angles: of_picked.as_ref(),
                };
                last.picked(x, &picked, &around, pass)
            }
            _ => x.select(0, rows),
        };
        self.normed(x)
    }

    /// The token of each sequence that the head reads, where it reads one.
    pub fn one_of_each(&self, sequences: &Sequences) -> Option<Vec<usize>> {
        match self.architecture.head.reads {
            Reads::First => Some(sequences.firsts().to_vec()),
            Reads::Last => {
                let lasts = (0..sequences.count()).map(|i| sequences.range(i).end - 1);
                Some(lasts.collect())
            }
            Reads::Mean { .. } | Reads::Each => None,
        }
    }

    /// The state before a text's first token.
    pub fn past(&self) -> Past<B> {
        Past {
            pairs: vec![None; self.depth()],
            tokens: 0,
        }
    }

    /// The last hidden states, `[tokens, hidden]`, of a text's next tokens, which are added to its `past`. For models in
    /// which a token sees those before it alone.
    pub fn extend(
        &self,
        ids: &[u32],
        past: &mut Past<B>,
        device: &B::Device,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        let before = past.tokens;
        let positions = before..before + ids.len();
        past.tokens = positions.end;
        let sequences = Sequences::new(&[0, past.tokens]);
        let local = self.architecture.block.attention.local.as_ref();
        let near = local.map(|local| Sequences::new(&[0, before.min(local.reach) + ids.len()]));
        let input = Input {
            tokens: Tokens::Words {
                ids: whole_numbers(ids.iter().map(|id| *id as usize), device),
                types: whole_numbers(ids.iter().map(|_| 0), device),
                positions: whole_numbers(positions.clone(), device),
            },
            sequences: Sequences::new(&[0, ids.len()]),
        };
        let around = Around {
            near,
            ..self.around_at(&sequences, positions, device)
        };
        let mut x = self.embed(&input, pass);
        for (block, pairs) in self.blocks.iter().zip(&mut past.pairs) {
            x = block.extend(x, pairs, &around, pass);
        }
        self.normed(x)
    }

    /// The norm behind the last layer, where there is one.
    pub fn normed(&self, x: Tensor<Ad<B>, 2>) -> Tensor<Ad<B>, 2> {
        match &self.final_norm {
            Some(norm) => B::add_norm(x, None, norm),
            None => x,
        }
    }

    /// The same, with new tokens at these `positions`.
    fn around_at<'a>(
        &'a self,
        sequences: &'a Sequences,
        positions: impl Iterator<Item = usize>,
        device: &B::Device,
    ) -> Around<'a, B> {
        let attention = &self.architecture.block.attention;
        let positions: Vec<usize> = positions.collect();
        let angles = |local| self.angles_of(positions.iter().copied(), local, device);
        let everywhere = angles(false);
        let turned_otherwise = attention
            .local
            .as_ref()
            .is_some_and(|local| local.rotary.is_some());
        Around {
            architecture: &self.architecture,
            sequences,
            near: None,
            relative: self.relative.as_ref(),
            angles: match turned_otherwise {
                true => [everywhere, angles(true)],
                false => [everywhere.clone(), everywhere],
            },
            layouts: Default::default(),
        }
    }

    /// Whether tokens of layer `layer` see those alone that are near.
    fn is_local(&self, layer: usize) -> bool {
        self.architecture.block.attention.local_in(layer).is_some()
    }

    /// By how much the heads of tokens at these `positions` are turned, where they are; in layers whose attention is
    /// `local`, or in the others.
    fn angles_of(
        &self,
        positions: impl Iterator<Item = usize>,
        local: bool,
        device: &B::Device,
    ) -> Option<Angles<B>> {
        let rotary = self.architecture.block.attention.rotary_where(local)?;
        let positions: Vec<u32> = positions.map(|position| position as u32).collect();
        Some(Angles::new(&positions, &rotary.frequencies, device))
    }

    /// The embeddings of all tokens, `[tokens, hidden]`.
    fn embed(&self, input: &Input<B>, pass: &mut Pass<B>) -> Tensor<Ad<B>, 2> {
        let x = self.embedder.embed(&input.tokens, pass);
        let dropout = self.architecture.dropout.embeddings;
        let site = pass.dropout(Site::Embeddings, x.dims()[0], dropout);
        B::dropout(x, site)
    }
}
