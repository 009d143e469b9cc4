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
    /// Parts of the body that nothing reads here, and that a merged model keeps.
    pub unread: &'static [&'static str],
    /// The key under which Transformers' class with a head has what is the whole `config.json` here, where it has.
    pub nested: Option<&'static str>,
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
    /// The entry of the vocabulary that never trains: PyTorch's `padding_idx`.
    pub padding: Option<usize>,
    /// What the vocabulary's rows are multiplied by.
    pub scale: Option<f32>,
    /// The norm of the sum.
    pub norm: Option<NormPart>,
}

/// An image in patches, each of which is a token, behind some that are the same for every image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patches {
    /// Path of the linear layer over a patch's values, kept as the convolution `[hidden, channels, height, width]`.
    pub projection: &'static str,
    /// Whether that has a bias.
    pub bias: bool,
    /// Height and width of an image, in pixels: multiples of a patch's.
    pub image: [usize; 2],
    /// Height and width of a patch, in pixels.
    pub patch: [usize; 2],
    /// Names of the tokens in front of the patches. The first stands for the whole image.
    pub firsts: &'static [&'static str],
    /// Name of what is added to each token for its place.
    pub positions: &'static str,
    /// Whether checkpoints have these as `[hidden]` and `[tokens, hidden]`, not as `[1, 1, hidden]` and
    /// `[1, tokens, hidden]`.
    pub flat: bool,
    /// The norm of the sum.
    pub norm: Option<NormPart>,
}

/// A norm over the features of each token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormPart {
    /// Its path.
    pub name: &'static str,
    /// What it takes out.
    pub kind: NormKind,
    /// Whether there is a shift beside the scale.
    pub bias: bool,
    /// Whether checkpoints have the scale less 1.
    pub less_one: bool,
    /// ε, under the root.
    pub epsilon: f32,
}

impl NormPart {
    /// A layer norm with a shift.
    pub fn layer(name: &'static str, epsilon: f32) -> Self {
        NormPart {
            name,
            kind: NormKind::Layer,
            bias: true,
            less_one: false,
            epsilon,
        }
    }

    /// A norm by the root of the mean square.
    pub fn root_mean_square(name: &'static str, epsilon: f32) -> Self {
        NormPart {
            kind: NormKind::RootMeanSquare,
            bias: false,
            ..NormPart::layer(name, epsilon)
        }
    }
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
    /// Whether the first layer's attention has none, since it reads embeddings that are normalised.
    pub first_bare: bool,
    /// Those of what each sublayer gives, before it is added to the residual (Ding et al. 2021), beside those in front.
    pub output_norms: Option<[NormPart; 2]>,
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
    /// What is otherwise in some of the layers.
    pub local: Option<Local>,
    /// The table of relative positions, of which keys and queries are made too.
    pub relative: Option<Relative>,
    /// Whether its output is dropped from with the probability of its weights, not with that of hidden states.
    pub drops_output_as_weights: bool,
}

/// Relative positions that take part in the scores as tokens do (He et al. 2021): the first two projections make queries
/// and keys of them too.
#[derive(Clone, Debug, PartialEq)]
pub struct Relative {
    /// The table of the body that has them: those of keys ahead of their query, and of keys behind it.
    pub table: Table,
    /// The norm of its rows.
    pub norm: Option<NormPart>,
    /// How many rows distances are put in on each side, and the one from which on they are not told apart; without
    /// them, each has a row as long as there are any.
    pub buckets: Option<[usize; 2]>,
}

impl Relative {
    /// The row of a key so far behind its query.
    pub fn row(&self, distance: isize) -> usize {
        let half = (self.table.entries / 2) as isize;
        let bucket = match self.buckets {
            // In f32, and rounded up, as it is computed there.
            Some([buckets, furthest]) if distance.unsigned_abs() > buckets / 2 => {
                let middle = (buckets / 2) as f32;
                let size = distance.unsigned_abs() as f32;
                let most = ((furthest - 1) as f64 / f64::from(middle)) as f32;
                let share = (size / middle).ln() / most.ln();
                let bucket = (share * (middle - 1.0)).ceil() + middle;
                bucket as isize * distance.signum()
            }
            _ => distance,
        };
        (bucket + half).clamp(0, 2 * half - 1) as usize
    }
}

/// Attention in which a token sees those alone that are near it.
#[derive(Clone, Debug, PartialEq)]
pub struct Local {
    /// How far away they lie at most.
    pub reach: usize,
    /// How queries and keys are turned there, if otherwise than elsewhere.
    pub rotary: Option<Rotary>,
    /// In which layers.
    pub layers: Layers,
}

/// Some of a model's layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layers {
    /// From this one on.
    From(usize),
    /// All whose number, from 0, plus `offset` is no multiple of `period`.
    Between {
        /// So many layers further there is one that is not meant.
        period: usize,
        /// By how much numbers are moved.
        offset: usize,
    },
    /// Whether each is meant.
    Listed(Vec<bool>),
}

impl Layers {
    /// Whether it has the layer of this number.
    pub fn has(&self, layer: usize) -> bool {
        match self {
            Layers::From(first) => layer >= *first,
            Layers::Between { period, offset } => !(layer + offset).is_multiple_of(*period),
            Layers::Listed(layers) => layers.get(layer) == Some(&true),
        }
    }

    /// Whether it has one of the first `count` layers.
    pub fn any(&self, count: usize) -> bool {
        match self {
            Layers::From(first) => *first < count,
            // Of two in a row no more than one is left out, but where all are.
            Layers::Between { period, .. } => *period > 1 && (0..count.min(2)).any(|i| self.has(i)),
            Layers::Listed(layers) => layers.iter().take(count).any(|is| *is),
        }
    }
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
    /// One layer; or the gate and what it lets through, in two layers or side by side in one.
    pub inner: Vec<LinearPart>,
    /// From there back to the hidden features.
    pub down: LinearPart,
    /// The function of the one layer, or of the gate.
    pub activation: Activation,
    /// Whether hidden states are dropped from in front of `down`, not behind it.
    pub drops_inside: bool,
}

/// How the weights of linear layers lie in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// `[out, in]`, as PyTorch's `Linear`.
    OutIn,
    /// `[in, out]`, as GPT-2's `Conv1D`.
    InOut,
}

/// What of a sequence a head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// The first token, which stands for the whole.
    First,
    /// The last, which alone has seen all others.
    Last,
    /// The mean of all tokens but so many in front.
    Mean {
        /// How many are left out.
        after: usize,
    },
    /// Each token.
    Each,
}

/// The layers between the hidden state that is read of a sequence and its logits, or between a token's and its own. They
/// train.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadPart {
    /// What it reads.
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
    /// Whether the head's hidden layer is between the tokens and that layer, as it is for sequences.
    pub hidden: bool,
}

/// The hidden layer of a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DensePart {
    /// Its path: in the body, where it is a pooler.
    pub name: &'static str,
    /// Whether it is part of the body, so that a bare checkpoint may have it.
    pub pooler: bool,
    /// Whether it has a bias.
    pub bias: bool,
    /// The function behind it.
    pub function: HeadFunction,
    /// The norm behind that.
    pub norm: Option<NormPart>,
}

/// The function behind a head's hidden layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadFunction {
    /// Hyperbolic tangent.
    Tanh,
    /// Rectified linear.
    Relu,
    /// One of the feed-forward's.
    Of(Activation),
}

/// The head that predicts the next token: frozen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LanguageHead {
    /// Its path, outside the body.
    pub name: &'static str,
    /// Whether it is the table of word embeddings.
    pub tied: bool,
    /// What no logit l exceeds, where there is a limit c: `c·tanh(l/c)`.
    pub soft_cap: Option<f32>,
    /// Transformers' class with it, where that is not `…ForCausalLM`.
    pub class: Option<&'static str>,
}

impl Embeddings {
    /// The norm of the sum.
    pub fn norm(&self) -> Option<&NormPart> {
        match self {
            Embeddings::Words(words) => words.norm.as_ref(),
            Embeddings::Patches(patches) => patches.norm.as_ref(),
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
                let parts = parts.chain(patches.firsts.iter().copied());
                parts.chain(patches.norm.map(|norm| norm.name)).collect()
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

    /// The norms over the hidden features that layer `layer` has.
    pub fn norms_of(&self, layer: usize) -> impl Iterator<Item = &NormPart> {
        let bare = self.first_bare && layer == 0;
        let own = self.norms.iter().skip(usize::from(bare));
        own.chain(self.output_norms.iter().flatten())
    }
}

impl Attention {
    /// What layer `layer` has otherwise than others, where that is so.
    pub fn local_in(&self, layer: usize) -> Option<&Local> {
        self.local.as_ref().filter(|local| local.layers.has(layer))
    }

    /// How tokens meet, everywhere or where attention is `local`.
    pub fn shape_where(&self, local: bool) -> AttentionShape {
        let local = self.local.as_ref().filter(|_| local);
        AttentionShape {
            reach: local.map(|local| local.reach),
            ..self.shape
        }
    }

    /// How queries and keys are turned, everywhere or where attention is `local`.
    pub fn rotary_where(&self, local: bool) -> Option<&Rotary> {
        let local = self.local.as_ref().filter(|_| local);
        let local = local.and_then(|local| local.rotary.as_ref());
        local.or(self.rotary.as_ref())
    }
}

impl FeedForward {
    /// Whether half of what the inner layers give is a gate.
    pub fn gated(&self) -> bool {
        let inner: usize = self.inner.iter().map(|linear| linear.outputs).sum();
        inner == 2 * self.down.inputs
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
            hidden,
        } = self.token_head?;
        self.head = HeadPart {
            reads: Reads::Each,
            input_dropout: false,
            dense: self.head.dense.filter(|_| hidden),
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

    /// The tables that tokens are looked up in.
    pub fn tables(&self) -> impl Iterator<Item = LinearInfo> + '_ {
        let tables = self.words().into_iter().flat_map(Words::tables);
        tables.map(|table| LinearInfo {
            path: table.name.to_owned(),
            layer: None,
            inputs: table.entries,
            outputs: self.hidden,
            bias: false,
            is_embedding: true,
        })
    }

    /// Every table of embeddings and every linear layer of the body in forward order, then the pooler if `pooler` says that
    /// it is frozen.
    pub fn linears(&self, pooler: bool) -> Vec<LinearInfo> {
        let layers = (0..self.layers).flat_map(|layer| self.linears_of(layer));
        let pooler = self.pooler().filter(|_| pooler).map(|path| LinearInfo {
            path: path.to_owned(),
            layer: None,
            inputs: self.hidden,
            outputs: self.hidden,
            bias: true,
            is_embedding: false,
        });
        self.tables().chain(layers).chain(pooler).collect()
    }

    /// The linear layers of transformer layer `layer` in forward order.
    pub fn linears_of(&self, layer: usize) -> impl Iterator<Item = LinearInfo> + '_ {
        self.block.linears().map(move |part| LinearInfo {
            path: format!("{}.{layer}.{}", self.layer_path, part.name),
            layer: Some(layer as u32),
            inputs: part.inputs,
            outputs: part.outputs,
            bias: part.bias,
            is_embedding: false,
        })
    }
}
