//! What training does to the weights.

use super::{Survey, bytes};
use crate::{
    driver::Buffer,
    error::Result,
    kernels::{
        Adamw, AdamwArgs, Dtype,
        params::{WlAdamwStatistics, WlAdamwStep},
    },
    optimizer::{Settings, Step},
};

/// Most elements of a tensor: every element costs the same, and larger ones take long.
const MOST: usize = 1 << 22;

/// Of a matrix, with gradients in f32; and in bf16, with a copy for the next pass.
pub(super) fn adamw(survey: &mut Survey) -> Result<()> {
    let settings = Settings::default();
    let count = survey.shapes.hidden.saturating_mul(survey.shapes.hidden).min(MOST);
    let step = WlAdamwStep::from(Step::new(&settings, 1, 1e-4, 1.0));
    for gradient_dtype in [Dtype::F32, Dtype::Bf16] {
        let size = gradient_dtype.size();
        let matrices: [_; 3] = std::array::from_fn(|_| survey.filled(4 * count));
        let [weights, m, v] = matrices;
        let (mut weights, mut m, mut v) = (weights?, m?, v?);
        let gradients = survey.filled(size * count)?;
        let mut copy = (gradient_dtype == Dtype::Bf16).then(|| survey.filled(2 * count)).transpose()?;
        let step = Buffer::from_slice(&survey.stream, std::slice::from_ref(&step))?;
        let mut statistics = survey.filled(size_of::<WlAdamwStatistics>())?;
        let mut scratch = survey.zeros(Adamw::scratch_bytes(count))?;
        let copied = if copy.is_some() { 2 } else { 0 };
        let read = count * (12 + size) + size_of::<WlAdamwStep>();
        let compulsory = bytes(read, count * (12 + copied) + size_of::<WlAdamwStatistics>());
        let args = AdamwArgs {
            settings,
            count,
            gradient_dtype,
            weights: weights.view_mut(),
            gradients: gradients.view(),
            m: m.view_mut(),
            v: v.view_mut(),
            copy: copy.as_mut().map(|copy| copy.view_mut()),
            step: step.view(),
            statistics: statistics.view_mut(),
            scratch: scratch.view_mut(),
        };
        let what = format!("{count} elements, gradients in {gradient_dtype}");
        survey.launch(&what, false, &[compulsory], |kernels, stream| kernels.adamw.launch(stream, args))?;
    }
    Ok(())
}
