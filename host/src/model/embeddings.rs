//! From what a batch holds to the hidden states of its tokens, frozen.

use burn::tensor::{Int, Tensor};

use super::architecture::{CHANNELS, Embeddings, NormPart, Patches, Table, Words};
use super::linear::Source;
use super::norm::{load_norm, require_norm};
use crate::adapter::{Looked, Pass, Weight};
use crate::error::Result;
use crate::kernel::{Ad, Branch, Frozen, Kernels, Norm};

/// What the tokens of a batch are made of, on the device.
#[derive(Clone, Debug)]
pub enum Tokens<B: Kernels> {
    /// Texts, packed.
    Words {
        /// Vocabulary indices, `[tokens]`.
        ids: Tensor<B, 1, Int>,
        /// Token types, `[tokens]`.
        types: Tensor<B, 1, Int>,
        /// Position of each token in its sequence, from 0, `[tokens]`.
        positions: Tensor<B, 1, Int>,
    },
    /// Images as the processor makes them, `[images, channels, height, width]`.
    Pixels(Tensor<B, 4>),
}

/// A table that tokens are looked up in, `[entries, hidden]`, and which module it is.
#[derive(Clone, Debug)]
pub(super) struct Lookup<B: Kernels> {
    table: Tensor<B, 2>,
    module: Option<usize>,
}

/// The tables or the projection.
#[derive(Clone, Debug)]
pub(super) enum Embedder<B: Kernels> {
    Words {
        of: Words,
        words: Lookup<B>,
        positions: Option<Lookup<B>>,
        types: Option<Lookup<B>>,
        norm: Option<Norm<B>>,
    },
    Patches {
        of: Patches,
        projection: Frozen<B>,
        /// What is put in front of an image's patches, with its positions added, `[firsts, hidden]`.
        firsts: Tensor<B, 2>,
        /// What is added to each patch, `[patches, hidden]`.
        positions: Tensor<B, 2>,
        norm: Option<Norm<B>>,
    },
}

/// Refuses a checkpoint that lacks a tensor of the embeddings, or has it in another shape.
pub(super) fn require(embeddings: &Embeddings, source: Source<'_>, hidden: usize) -> Result<()> {
    let require = |name: &str, shape: &[usize]| {
        let name = format!("{}{name}", source.prefix);
        source.weights.require(&name, shape)
    };
    match embeddings {
        Embeddings::Words(words) => {
            for table in words.tables() {
                require(&format!("{}.weight", table.name), &[table.entries, hidden])?;
            }
        }
        Embeddings::Patches(patches) => {
            let name = patches.projection;
            require(&format!("{name}.weight"), &kernel(patches, hidden))?;
            if patches.bias {
                require(&format!("{name}.bias"), &[hidden])?;
            }
            let batch = if patches.flat { &[][..] } else { &[1] };
            for first in patches.firsts {
                require(first, &[batch, batch, &[hidden]].concat())?;
            }
            let shape = [batch, &[patches.tokens(), hidden]].concat();
            require(patches.positions, &shape)?;
        }
    }
    let norm = embeddings.norm();
    norm.map_or(Ok(()), |norm| require_norm(source, norm.name, norm, hidden))
}

/// The shape of the convolution that a projection of patches is kept as.
fn kernel(patches: &Patches, hidden: usize) -> [usize; 4] {
    let [height, width] = patches.patch;
    [hidden, CHANNELS, height, width]
}

impl<B: Kernels> Embedder<B> {
    /// `module_of` tells which tables are adapted modules.
    pub fn load(
        embeddings: &Embeddings,
        source: Source<'_>,
        hidden: usize,
        module_of: &[Option<usize>],
        device: &B::Device,
    ) -> Result<Self> {
        let name = |name: &str| format!("{}{name}", source.prefix);
        let weights = source.weights;
        let norm = |part: &NormPart| load_norm(source, part.name, part, hidden, device);
        match embeddings {
            Embeddings::Words(of) => {
                let mut module_of = module_of.iter().copied();
                let mut table = |table: &Table| -> Result<Lookup<B>> {
                    let name = name(&format!("{}.weight", table.name));
                    Ok(Lookup {
                        table: weights.rows::<B>(&name, [table.entries, hidden], device)?,
                        module: module_of.next().flatten(),
                    })
                };
                Ok(Embedder::Words {
                    of: *of,
                    words: table(&of.words)?,
                    positions: of.positions.as_ref().map(&mut table).transpose()?,
                    types: of.types.as_ref().map(&mut table).transpose()?,
                    norm: of.norm.as_ref().map(norm).transpose()?,
                })
            }
            Embeddings::Patches(of) => {
                let weight = name(&format!("{}.weight", of.projection));
                let weight = weights.tensor::<B, 4>(&weight, kernel(of, hidden), device)?;
                let bias = name(&format!("{}.bias", of.projection));
                let bias = (of.bias).then(|| weights.tensor(&bias, [hidden], device));
                let firsts = of.firsts.iter().map(|first| {
                    let first = name(first);
                    Ok(match of.flat {
                        true => weights
                            .tensor::<B, 1>(&first, [hidden], device)?
                            .unsqueeze(),
                        false => {
                            let first = weights.tensor::<B, 3>(&first, [1, 1, hidden], device)?;
                            first.reshape([1, hidden])
                        }
                    })
                });
                let firsts = Tensor::cat(firsts.collect::<Result<Vec<_>>>()?, 0);
                let (positions, tokens) = (name(of.positions), of.tokens());
                let positions = match of.flat {
                    true => weights.tensor::<B, 2>(&positions, [tokens, hidden], device)?,
                    false => {
                        let shape = [1, tokens, hidden];
                        let positions = weights.tensor::<B, 3>(&positions, shape, device)?;
                        positions.reshape([tokens, hidden])
                    }
                };
                let ahead = of.firsts.len();
                Ok(Embedder::Patches {
                    of: *of,
                    projection: Frozen::lean(
                        weight.reshape([hidden, of.values()]),
                        bias.transpose()?,
                        source.precision,
                    ),
                    firsts: firsts + positions.clone().slice_dim(0, 0..ahead),
                    positions: positions.slice_dim(0, ahead..of.tokens()),
                    norm: of.norm.as_ref().map(norm).transpose()?,
                })
            }
        }
    }

    /// The table of word embeddings, `[vocabulary, hidden]`, of a model that reads texts.
    pub fn words(&self) -> Option<Tensor<B, 2>> {
        match self {
            Embedder::Words { words, .. } => Some(words.table.clone()),
            Embedder::Patches { .. } => None,
        }
    }

    /// The tables that are modules, with the number of each.
    pub fn modules(&self) -> impl Iterator<Item = (usize, Weight<B>)> {
        let tables = match self {
            Embedder::Words {
                words,
                positions,
                types,
                ..
            } => [Some(words), positions.as_ref(), types.as_ref()],
            Embedder::Patches { .. } => [None; 3],
        };
        let modules = tables.into_iter().flatten();
        modules.filter_map(|it| Some((it.module?, Weight::Table(it.table.clone()))))
    }

    /// Hidden states, `[tokens, hidden]`, of what the model reads.
    pub fn embed(&self, tokens: &Tokens<B>, pass: &mut Pass<B>) -> Tensor<Ad<B>, 2> {
        match (self, tokens) {
            (
                Embedder::Words {
                    of,
                    words,
                    positions: of_positions,
                    types: of_types,
                    norm,
                },
                Tokens::Words {
                    ids,
                    types,
                    positions,
                },
            ) => {
                let mut look = |Lookup { table, module }: &Lookup<B>, ids, still, factor| {
                    let looked = Looked { ids, still };
                    pass.lookup(table, &looked, factor, *module)
                };
                let words = look(words, ids.clone(), of.padding, of.scale);
                let of_positions = of_positions.as_ref().map(|table| {
                    let rows = positions.clone() + of.first_position as i64;
                    look(table, rows, None, None)
                });
                let of_types = of_types.as_ref();
                let of_types = of_types.map(|table| look(table, types.clone(), None, None));
                let rest = [of_positions, of_types].into_iter().flatten();
                let rest = rest.reduce(|a, b| a + b);
                match (norm, rest) {
                    (Some(norm), rest) => B::add_norm(words, rest, norm),
                    (None, Some(rest)) => words + rest,
                    (None, None) => words,
                }
            }
            (
                Embedder::Patches {
                    of,
                    projection,
                    firsts,
                    positions,
                    norm,
                },
                Tokens::Pixels(pixels),
            ) => {
                let images = pixels.dims()[0];
                let branch = Branch {
                    frozen: projection,
                    lora: None,
                };
                let patches = Tensor::from_inner(patches(of, pixels.clone()));
                let projected = B::linears(patches, vec![branch]).y.inner();
                let [count, hidden] = positions.dims();
                let projected: Tensor<B, 3> = projected.reshape([images, count, hidden]);
                let projected = projected + positions.clone().unsqueeze_dim(0);
                let firsts = firsts.clone().unsqueeze_dim::<3>(0).repeat_dim(0, images);
                let all = Tensor::cat(vec![firsts, projected], 1);
                let all = Tensor::from_inner(all.reshape([images * of.tokens(), hidden]));
                match norm {
                    Some(norm) => B::add_norm(all, None, norm),
                    None => all,
                }
            }
            _ => unreachable!("data and model are held against each other before"),
        }
    }
}

/// The values of each patch, `[images × patches, channels × height × width]`, from those of whole images.
fn patches<B: Kernels>(of: &Patches, pixels: Tensor<B, 4>) -> Tensor<B, 2> {
    let [images, channels, _, _] = pixels.dims();
    let ([rows, columns], [height, width]) = (of.grid(), of.patch);
    let apart: Tensor<B, 6> = pixels.reshape([images, channels, rows, height, columns, width]);
    let together = apart.permute([0, 2, 4, 1, 3, 5]);
    together.reshape([images * of.count(), of.values()])
}
