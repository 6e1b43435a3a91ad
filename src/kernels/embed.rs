//! Token ids to rows: `cuda/kernels/embed.cu`.

use std::sync::Arc;

use super::{
    Check, Dtype, Half, Module, Rows, RowsMut,
    geometry::{Geometry, geometry},
    manifest::{About, apart, texts, type_of},
    params::{WL_EMBED_FEATURES, WL_VERSION, WlEmbed},
};
use crate::{
    driver::{Driver, Function, Stream, View, ViewMut},
    error::Result,
};

/// `out[r] = table[tokens[r]]`.
///
/// The row of a token that is not in the vocabulary is NaN, its statistics too.
pub struct Embed {
    functions: Half<Function>,
}

/// What [`Embed::launch`] takes.
#[derive(Debug)]
pub struct EmbedArgs<'b> {
    /// Type of table and out: bf16 or f16.
    pub dtype: Dtype,
    /// Number of rows.
    pub rows: usize,
    /// Features of a row, up to 2^26.
    pub width: usize,
    /// Rows of the table.
    pub vocabulary: usize,
    /// `[vocabulary, width]`.
    pub table: Rows<'b>,
    /// i32 `[rows]`.
    pub tokens: View<'b>,
    /// i32 `[rows]`: nothing is written for rows with a negative position. None: there are none.
    pub positions: Option<View<'b>>,
    /// `[rows, width]`.
    pub out: RowsMut<'b>,
    /// f32 `[rows, ⌈width / 64⌉]`: sums of squares of out, for kernels that norm for themselves.
    pub stats: Option<ViewMut<'b>>,
}

const ROWS: Geometry<WlEmbed> = geometry! {
    WlEmbed { rows, width } [WL_EMBED_THREADS, WL_EMBED_FEATURES]
    grid: [rows * ceil_div(width, WL_EMBED_FEATURES), 1, 1],
    block: WL_EMBED_THREADS,
    shared: 0,
};

/// For the manifest.
pub(super) fn about(entry: &str) -> About {
    let mut requires = vec![type_of(entry), "table_type == type".to_string()];
    requires.extend(texts(&["1 <= rows", "1 <= width", "width <= 67108864", "0 <= vocabulary"]));
    requires.extend(apart("rows", "width", &["out_stride"]));
    requires.extend(apart("vocabulary", "width", &["table_stride"]));
    About { requires, ..About::new("WlEmbed", "token ids to rows of the embedding's table", ROWS.text) }
}

impl Embed {
    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn load(driver: &Arc<dyn Driver>) -> Result<Self> {
        let module = Module::load(driver, "embed")?;
        Ok(Embed { functions: Half::load(|t| module.function(&format!("wl_embed_{t}")))? })
    }

    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for types, shapes, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn launch(&self, stream: &Stream, args: &EmbedArgs) -> Result<()> {
        let &EmbedArgs { dtype, rows, width, vocabulary, .. } = args;
        let function = self.functions.of(dtype)?;
        let size = dtype.size();
        let mut p = WlEmbed {
            version: WL_VERSION,
            type_: dtype.code(),
            table_type: dtype.code(),
            width: Check::of("width").count(width, 1..=1 << 26)?,
            vocabulary: Check::of("vocabulary").count(vocabulary, 0..=i32::MAX as usize)?,
            tokens: Check::of("tokens").view(args.tokens, rows, 4)?,
            ..WlEmbed::default()
        };
        let ctas = width.div_ceil(WL_EMBED_FEATURES as usize);
        p.rows = Check::of("rows").count(rows, 0..=i32::MAX as usize / ctas)?;
        (p.table, p.table_stride) = Check::of("table").rows(&args.table, vocabulary, width, size)?;
        (p.out, p.out_stride) = Check::of("out").rows_mut(&args.out, rows, width, size)?;
        if let Some(stats) = &args.stats {
            p.stats = Check::of("stats").view_mut(stats, rows.saturating_mul(width.div_ceil(64)), 4)?;
        }
        if let Some(positions) = args.positions {
            p.positions = Check::of("positions").view(positions, rows, 4)?;
        }
        if rows == 0 {
            return Ok(());
        }
        // SAFETY: the sizes above cover all that the kernel touches of `rows` rows; it reads no token outside the
        // vocabulary.
        unsafe { stream.launch(function, &ROWS.launch(&p)) }
    }
}
