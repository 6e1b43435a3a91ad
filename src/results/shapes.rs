//! How shapes are written in rows: benchmarks write them, targets look for them, and `scripts/compare-torch` reads from them what
//! its peers are to do.

/// Rows and columns: of norms, products' activations and the like.
pub fn matrix(rows: usize, width: usize) -> String {
    format!("M{rows} N{width}")
}

/// `rows` times `[inputs, outputs]`.
pub fn product(rows: usize, outputs: usize, inputs: usize) -> String {
    format!("M{rows} N{outputs} K{inputs}")
}

/// Query heads on key and value heads of a width.
pub fn heads(heads: usize, kv_heads: usize, head_dim: usize) -> String {
    format!("D{head_dim} H{heads}/{kv_heads}")
}

/// Rotated rows.
pub fn rotation(rows: usize, heads_: usize, kv_heads: usize, head_dim: usize) -> String {
    format!("{} M{rows}", heads(heads_, kv_heads, head_dim))
}

/// Sequences whose prompts of `rows` rows attend to themselves. `mask`: `causal`, `full` or `window N`.
pub fn prompt(mask: &str, heads: [usize; 3], sequences: usize, rows: usize) -> String {
    let [q, kv, head_dim] = heads;
    format!("{} {mask} B{sequences} S{rows}", self::heads(q, kv, head_dim))
}

/// Sequences with `rows` decode rows each, over `keys` keys.
pub fn decode(heads: [usize; 3], sequences: usize, rows: usize, keys: usize) -> String {
    let [q, kv, head_dim] = heads;
    format!("{} B{sequences} R{rows} KV{keys}", self::heads(q, kv, head_dim))
}

/// A model that generates `tokens` tokens after `prompt`.
pub fn generation(model: &str, sequences: usize, prompt: usize, tokens: usize) -> String {
    format!("{model} B{sequences} P{prompt} T{tokens}")
}

/// The same in rounds with an exit layer and a draft length, `kept` of which are accepted.
pub fn rounds(generation: &str, exit: usize, draft: usize, kept: usize) -> String {
    format!("{generation} E{exit} d{draft} a{kept}/{draft}")
}
