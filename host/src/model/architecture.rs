//! What a model is made of: the parts that families share, in the sizes and under the names of one of them.

use crate::adapter::LinearInfo;
use crate::kernel::{Activation, AttentionShape, NormKind};

/// Red, green and blue: what a pixel has.
pub const CHANNELS: usize = 3;

/// A model without its weights: what a [family](super::family) makes of a `config.json`. Names of parts are
/// relative to where they lie, those of the body without the family's prefix.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// The `model_type` it goes by: `bert`.
    pub family: &'static str,
    /// What its classes in Transformers begin with: `Bert`.
    pub class: &'static str,
    /// What checkpoints with a head put before every tensor of the body: `bert`.
    pub prefix: &'static str,
    /// Features of a token.
    pub hidden: usize,
    /// The longest sequence that it can tell the order of, in tokens.
    pub max_length: usize,
    /// How tokens become hidden states.
    pub embeddings: Embeddings,
    /// Transformer layers.
    pub layers: usize,
    /// Path of layer `i` is `{layer_path}.{i}`.
    pub layer_path: &'static str,
    /// What each of them is.
    pub block: Block,
    /// The norm behind the last layer, where there is one.
    pub final_norm: Option<NormPart>,
    /// What stands between the hidden states and the logits of a sequence.
    pub head: HeadPart,
    /// What stands between each token's hidden state and its logits instead, where the family has that.
    pub token_head: Option<TokenHead>,
    /// The head that predicts tokens, where the family has one.
    pub language_head: Option<LanguageHead>,
    /// How linear layers keep their weights.
    pub weights: WeightLayout,
    /// What checkpoints call parts that have other names here, and those, to be replaced one after the other.
    pub stored: &'static [(&'static str, &'static str)],
    /// Probabilities of dropout.
    pub dropout: Dropouts,
}

/// Probabilities of dropout.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dropouts {
    /// Of the embeddings.
    pub embeddings: f32,
    /// Of each sublayer's output.
    pub hidden: f32,
    /// Of the attention weights.
    pub attention: f32,
    /// In the head.
    pub classifier: f32,
}

/// A table of embeddings, of so many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its path.
    pub name: &'static str,
    /// Rows.
    pub entries: usize,
}

/// How tokens become hidden states.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Embeddings {
    /// Of texts, by what tokens they are.
    Words(Words),
    /// Of images, by what is seen on their patches.
    Patches(Patches),
}

/// Tables whose rows are added up for each token of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Words {
    /// Of the vocabulary.
    pub words: Table,
    /// Of the positions, where they are learnt.
    pub positions: Option<Table>,
    /// The row of a sequence's first token.
    pub first_position: usize,
    /// Of the token types.
    pub types: Option<Table>,
    /// The norm of the sum.
    pub norm: Option<NormPart>,
}

/// An image in patches, each of which is a token, behind some that are the same for every image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patches {
    /// Path of the linear layer over a patch's values, kept as the convolution `[hidden, channels, height, width]`.
    pub projection: &'static str,
    /// Height and width of an image, in pixels: multiples of a patch's.
    pub image: [usize; 2],
    /// Height and width of a patch, in pixels.
    pub patch: [usize; 2],
    /// Names of the tokens in front of the patches, each `[1, 1, hidden]`. The first stands for the whole image.
    pub firsts: &'static [&'static str],
    /// Name of what is added to each token for its place, `[1, tokens, hidden]`.
    pub positions: &'static str,
}

/// A norm over the features of each token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormPart {
    /// Its path.
    pub name: &'static str,
    /// What it takes out.
    pub kind: NormKind,
    /// ε, under the root.
    pub epsilon: f32,
}

/// Where a layer's norms stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Behind each sublayer and its residual: `norm(x + f(x))` (Vaswani et al. 2017).
    PostNorm,
    /// In front of each sublayer: `x + f(norm(x))` (Xiong et al. 2020).
    PreNorm,
}

/// A transformer layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Where its norms stand.
    pub order: Order,
    /// The attention's, and the feed-forward's.
    pub norms: [NormPart; 2],
    /// Attention.
    pub attention: Attention,
    /// Feed-forward.
    pub feed_forward: FeedForward,
}

/// A linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearPart {
    /// Its path in the layer.
    pub name: &'static str,
    /// Features in.
    pub inputs: usize,
    /// Features out.
    pub outputs: usize,
    /// Whether something is added to its output.
    pub bias: bool,
}

/// A layer's attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query, key and value, or one layer that gives them side by side.
    pub projections: Vec<LinearPart>,
    /// The output projection.
    pub output: LinearPart,
    /// Heads.
    pub shape: AttentionShape,
    /// Norms of each head of the queries and of the keys.
    pub head_norms: Option<[NormPart; 2]>,
    /// How queries and keys are turned by their positions.
    pub rotary: Option<Rotary>,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// By how much each pair of features is turned from one position to the next: half a head's.
    pub frequencies: Vec<f64>,
}

/// A layer's feed-forward.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedForward {
    /// One layer, or the gate and what it lets through.
    pub inner: Vec<LinearPart>,
    /// From there back to the hidden features.
    pub down: LinearPart,
    /// The function of the one layer, or of the gate.
    pub activation: Activation,
}

/// How the weights of linear layers lie in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// `[out, in]`, as PyTorch's `Linear`.
    OutIn,
    /// `[in, out]`, as GPT-2's `Conv1D`.
    InOut,
}

/// Which tokens of a sequence a head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// The first, which stands for the whole.
    First,
    /// The last, which alone has seen all others.
    Last,
    /// Each of them.
    Each,
}

/// The layers between a token's hidden state and the logits of its sequence, or its own. They train.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadPart {
    /// The tokens that it reads.
    pub reads: Reads,
    /// Whether its input is dropped from.
    pub input_dropout: bool,
    /// A hidden layer of as many features.
    pub dense: Option<DensePart>,
    /// The layer that gives the logits.
    pub last: &'static str,
    /// Whether that layer has a bias.
    pub bias: bool,
    /// The module of Transformers' class that all of it belongs to, where its layers are not modules of their own.
    pub module: Option<&'static str>,
}

/// The head of a `…ForTokenClassification`: dropout and one layer. It trains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenHead {
    /// The layer that gives the logits.
    pub last: &'static str,
    /// Whether that layer has a bias.
    pub bias: bool,
    /// The probability with which its input is dropped from.
    pub dropout: f32,
}

/// The hidden layer of a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DensePart {
    /// Its path: in the body, where it is a pooler.
    pub name: &'static str,
    /// Whether it is part of the body, so that a bare checkpoint may have it.
    pub pooler: bool,
    /// The function behind it.
    pub function: HeadFunction,
}

/// The function behind a head's hidden layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadFunction {
    /// Hyperbolic tangent.
    Tanh,
    /// Rectified linear.
    Relu,
}

/// The head that predicts the next token: frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LanguageHead {
    /// Its path, outside the body.
    pub name: &'static str,
    /// Whether it is the table of word embeddings.
    pub tied: bool,
}

impl Embeddings {
    /// The norm of the sum.
    pub fn norm(&self) -> Option<&NormPart> {
        match self {
            Embeddings::Words(words) => words.norm.as_ref(),
            Embeddings::Patches(_) => None,
        }
    }

    /// The paths of what they are made of, norm included.
    pub fn paths(&self) -> Vec<&'static str> {
        match self {
            Embeddings::Words(words) => {
                let tables = words.tables().map(|table| table.name);
                tables.chain(words.norm.map(|norm| norm.name)).collect()
            }
            Embeddings::Patches(patches) => {
                let parts = [patches.projection, patches.positions].into_iter();
                parts.chain(patches.firsts.iter().copied()).collect()
            }
        }
    }
}

impl Patches {
    /// How many patches an image has.
    pub fn count(&self) -> usize {
        let [rows, columns] = self.grid();
        rows * columns
    }

    /// How many rows and columns of patches an image has.
    pub fn grid(&self) -> [usize; 2] {
        [0, 1].map(|side| self.image[side] / self.patch[side])
    }

    /// Tokens of an image.
    pub fn tokens(&self) -> usize {
        self.firsts.len() + self.count()
    }

    /// Values of a patch.
    pub fn values(&self) -> usize {
        CHANNELS * self.patch[0] * self.patch[1]
    }
}

impl Words {
    /// The tables that there are.
    pub fn tables(&self) -> impl Iterator<Item = Table> {
        let tables = [Some(self.words), self.positions, self.types];
        tables.into_iter().flatten()
    }
}

impl HeadPart {
    /// What a decoder's `…ForSequenceClassification` has: one layer without a bias, over the last token.
    pub const SCORE: HeadPart = HeadPart {
        reads: Reads::Last,
        input_dropout: false,
        dense: None,
        last: "score",
        bias: false,
        module: None,
    };
}

impl Block {
    /// Its linear layers in forward order.
    pub fn linears(&self) -> impl Iterator<Item = &LinearPart> {
        let attention = &self.attention;
        let feed_forward = &self.feed_forward;
        attention
            .projections
            .iter()
            .chain([&attention.output])
            .chain(&feed_forward.inner)
            .chain([&feed_forward.down])
    }

    /// Features inside the feed-forward.
    pub fn intermediate(&self) -> usize {
        self.feed_forward.down.inputs
    }
}

impl Architecture {
    /// The embeddings of a model that reads texts.
    pub fn words(&self) -> Option<&Words> {
        match &self.embeddings {
            Embeddings::Words(words) => Some(words),
            Embeddings::Patches(_) => None,
        }
    }

    /// Entries of the vocabulary; none for a model that reads images.
    pub fn vocabulary(&self) -> usize {
        self.words().map_or(0, |words| words.words.entries)
    }

    /// The embeddings of a model that reads images.
    pub fn patches(&self) -> Option<&Patches> {
        match &self.embeddings {
            Embeddings::Words(_) => None,
            Embeddings::Patches(patches) => Some(patches),
        }
    }

    /// The same model under the head that labels each token; none where the family has no such head.
    pub fn labelling_tokens(mut self) -> Option<Self> {
        let TokenHead {
            last,
            bias,
            dropout,
        } = self.token_head?;
        self.head = HeadPart {
            reads: Reads::Each,
            input_dropout: false,
            dense: None,
            last,
            bias,
            module: None,
        };
        self.dropout.classifier = dropout;
        Some(self)
    }

    /// A tensor's name here, by its name in a checkpoint.
    pub fn renamed(&self, stored: &str) -> String {
        let renames = self.stored.iter();
        renames.fold(stored.to_owned(), |name, (old, new)| name.replace(old, new))
    }

    /// The pooler's path, where there is one.
    pub fn pooler(&self) -> Option<&'static str> {
        let dense = self.head.dense.filter(|dense| dense.pooler);
        dense.map(|dense| dense.name)
    }

    /// Every linear layer of the body in forward order, then the pooler if `pooler` says that it is frozen.
    pub fn linears(&self, pooler: bool) -> Vec<LinearInfo> {
        let layers = (0..self.layers).flat_map(|layer| self.linears_of(layer));
        let pooler = self.pooler().filter(|_| pooler).map(|path| LinearInfo {
            path: path.to_owned(),
            layer: None,
            inputs: self.hidden,
            outputs: self.hidden,
        });
        layers.chain(pooler).collect()
    }

    /// The linear layers of transformer layer `layer` in forward order.
    pub fn linears_of(&self, layer: usize) -> impl Iterator<Item = LinearInfo> + '_ {
        self.block.linears().map(move |part| LinearInfo {
            path: format!("{}.{layer}.{}", self.layer_path, part.name),
            layer: Some(layer as u32),
            inputs: part.inputs,
            outputs: part.outputs,
        })
    }
}
