//! The demo model that is part of the command: `assets/demo`, and how it drafts best.

use warploom::{
    Result,
    checkpoint::Checkpoint,
    decode::Policy,
    text::{ChatTemplate, Tokenizer},
};

use super::options::Drafting;

const CONFIG: &[u8] = include_bytes!("../../assets/demo/config.json");
const GENERATION_CONFIG: &[u8] = include_bytes!("../../assets/demo/generation_config.json");
const WEIGHTS: &[u8] = include_bytes!("../../assets/demo/model.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../../assets/demo/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../assets/demo/tokenizer_config.json");

/// How the demo drafts where no option says otherwise. Its rows are not free, since its weights lie in the caches: drafts that
/// are unsure cost more than they bring.
pub const DRAFTING: Drafting =
    Drafting { policy: Policy::Length, exit_layer: 4, draft: 4, threshold: Some(0.35) };

/// The demo's configuration and weights.
pub fn checkpoint() -> Result<Checkpoint> {
    Checkpoint::from_bytes(CONFIG, Some(GENERATION_CONFIG), WEIGHTS)
}

/// The demo's tokenizer, for a model of `vocab` embeddings.
pub fn tokenizer(vocab: usize) -> Result<Tokenizer> {
    Tokenizer::from_bytes(TOKENIZER, Some(TOKENIZER_CONFIG), vocab)
}

/// The demo's chat template.
pub fn chat_template() -> Result<Option<ChatTemplate>> {
    ChatTemplate::from_config(TOKENIZER_CONFIG)
}
