//! What a run leaves behind: a Hugging Face folder, `log.csv` and `loss.svg`.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use half::bf16;
use plotters::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use tokenizers::Tokenizer;

use super::{Validation, parameters::Layout, settings::Settings, tokenizer};
use crate::{Error, Result, checkpoint::NORM, mask::Pattern};

/// The folder of a run.
pub struct Output {
    folder: PathBuf,
    log: File,
}

impl Output {
    /// Refuses a folder that holds anything but a previous output of the trainer.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Io`].
    pub fn check(folder: &Path) -> Result<()> {
        let metadata = match fs::metadata(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| Error::io(folder, error))?,
        };
        if !metadata.is_dir() {
            return Err(Error::file(folder, "is no folder; give --out a new one"));
        }
        let mut entries = fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
        if entries.next().is_none() || is_log(&folder.join("log.csv")) {
            return Ok(());
        }
        Err(Error::file(folder, "is not empty and was not written by this command; give --out a new folder"))
    }

    /// Creates the folder, or empties it of the previous output's log and weights, and writes everything but
    /// the weights.
    ///
    /// # Errors
    /// [`Error::Io`], and those of [`Output::check`].
    pub fn create(folder: &Path, settings: &Settings, tokenizer: &Tokenizer) -> Result<Self> {
        Self::check(folder)?;
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        // Old weights beside a new configuration would be a broken checkpoint.
        let weights = folder.join("model.safetensors");
        match fs::remove_file(&weights) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(weights, error));
            }
            _ => {}
        }
        let path = folder.join("log.csv");
        let mut log = File::create(&path).map_err(|error| Error::io(&path, error))?;
        log.write_all(header(settings.layers).as_bytes()).map_err(|error| Error::io(&path, error))?;
        let output = Output { folder: folder.to_path_buf(), log };
        output.write_json("config.json", &config(settings))?;
        output.write_json("generation_config.json", &generation_config(settings))?;
        output.write_json("tokenizer_config.json", &tokenizer_config(settings))?;
        let text = tokenizer
            .to_string(false)
            .map_err(|error| Error::Text { what: "tokenizer.json".into(), reason: error.to_string() })?;
        output.write("tokenizer.json", text.as_bytes())?;
        Ok(output)
    }

    /// Appends a line to `log.csv`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, line: &LogLine<'_>) -> Result<()> {
        let mut text = format!("{},{},{:.6}", line.step, line.tokens, line.learning_rate);
        let number = |value: Option<f64>| value.map_or(String::from(","), |value| format!(",{value:.4}"));
        text += &number(line.loss);
        line.exits.iter().for_each(|&exit| text += &number(exit));
        for l in 0..line.exits.len() {
            text += &number(line.validation.map(|v| v.loss[l]));
        }
        for l in 0..line.exits.len() {
            text += &number(line.validation.map(|v| v.agreement[l]));
        }
        text.push('\n');
        self.log.write_all(text.as_bytes()).map_err(|error| Error::io(self.folder.join("log.csv"), error))
    }

    /// Writes the weights, rounded to bf16, and the picture of the losses so far.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`].
    pub fn save(
        &self,
        layout: &Layout,
        settings: &Settings,
        weights: &[f32],
        validations: &[Validation],
    ) -> Result<()> {
        let path = self.folder.join("model.safetensors");
        let mut rounded: Vec<bf16> = weights.iter().map(|&weight| bf16::from_f32(weight)).collect();
        let tensors = layout.tensors(settings);
        // The final norm's weight multiplies every logit of every exit.
        for tensor in tensors.iter().filter(|tensor| tensor.name == NORM) {
            for (rounded, weight) in
                rounded[tensor.range.clone()].iter_mut().zip(&weights[tensor.range.clone()])
            {
                *rounded = bf16::from_f32(weight * settings.logit_scale);
            }
        }
        let failed = |error: safetensors::SafeTensorError| Error::file(&path, error.to_string());
        let views: Vec<(&str, TensorView<'_>)> = tensors
            .iter()
            .map(|tensor| {
                let bytes = bytemuck::cast_slice(&rounded[tensor.range.clone()]);
                let view = TensorView::new(Dtype::BF16, tensor.shape.clone(), bytes).map_err(failed)?;
                Ok((tensor.name.as_str(), view))
            })
            .collect::<Result<_>>()?;
        let metadata = [("format".to_string(), "pt".to_string())].into();
        self.write("model.safetensors", &safetensors::serialize(views, Some(metadata)).map_err(failed)?)?;
        if validations.len() > 1 {
            self.write("loss.svg", plot(validations, settings.layers)?.as_bytes())?;
        }
        Ok(())
    }

    fn write_json(&self, name: &str, value: &serde_json::Value) -> Result<()> {
        self.write(name, format!("{value:#}\n").as_bytes())
    }

    /// Writes a file aside and renames it, so that a reader never meets half of it.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (aside, path) = (self.folder.join(format!(".{name}.part")), self.folder.join(name));
        fs::write(&aside, bytes).and_then(|()| fs::rename(&aside, &path)).map_err(|error| {
            // The error at hand matters more than one of the clean-up.
            let _ = fs::remove_file(&aside);
            Error::io(&path, error)
        })
    }
}

/// One line of `log.csv`: means since the line before; exits that no step trained are left blank.
pub struct LogLine<'a> {
    /// Steps done.
    pub step: usize,
    /// Tokens trained on.
    pub tokens: usize,
    /// Learning rate of the last step.
    pub learning_rate: f32,
    /// The loss that is minimised, in nats a token.
    pub loss: Option<f64>,
    /// Cross-entropy at each exit, in nats a token.
    pub exits: &'a [Option<f64>],
    /// Evaluation on the held-out text at this step.
    pub validation: Option<&'a Validation>,
}

fn header(layers: usize) -> String {
    let columns = |name: &str| (1..=layers).map(|l| format!(",{name}_{l}")).collect::<String>();
    let (exits, validation, agreement) = (columns("exit"), columns("validation"), columns("agreement"));
    format!("step,tokens,learning_rate,loss{exits}{validation}{agreement}\n")
}

/// Whether `path` is a log of this trainer.
fn is_log(path: &Path) -> bool {
    let mut line = String::new();
    File::open(path)
        .and_then(|file| BufReader::new(std::io::Read::take(file, 1 << 16)).read_line(&mut line))
        .is_ok_and(|_| line.starts_with("step,tokens,learning_rate,loss,exit_1"))
}

fn config(settings: &Settings) -> serde_json::Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": settings.layers,
        "hidden_size": settings.hidden,
        "intermediate_size": settings.intermediate,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.kv_heads,
        "head_dim": settings.head_dim(),
        "vocab_size": settings.vocab,
        "max_position_embeddings": settings.context,
        "rms_norm_eps": Settings::RMS_NORM_EPS,
        "rope_theta": Settings::ROPE_THETA,
        "rope_scaling": null,
        "hidden_act": "silu",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "mlp_bias": false,
        "tie_word_embeddings": true,
        "initializer_range": 0.02,
        "bos_token_id": settings.vocab - 2,
        "eos_token_id": settings.vocab - 1,
        "torch_dtype": "bfloat16",
        "use_cache": true,
    });
    match settings.attention.pattern {
        Pattern::Window { keys } => config["sliding_window"] = json!(keys),
        Pattern::Chunk { keys } => config["attention_chunk_size"] = json!(keys),
        _ => {}
    }
    config
}

fn generation_config(settings: &Settings) -> serde_json::Value {
    json!({ "bos_token_id": settings.vocab - 2, "eos_token_id": settings.vocab - 1 })
}

fn tokenizer_config(settings: &Settings) -> serde_json::Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer::BEGIN,
        "eos_token": tokenizer::END,
        "clean_up_tokenization_spaces": false,
        "model_max_length": settings.context,
        // The model has seen no dialogue: turns are paragraphs for it to continue.
        "chat_template": "{{ bos_token }}{% for message in messages %}{{ message['content'] | trim }}\n\n{% endfor %}",
    })
}

/// Held-out cross-entropy of every exit over the steps, as SVG.
fn plot(validations: &[Validation], layers: usize) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, validations, layers)
        .map_err(|error| Error::Text { what: "loss.svg".into(), reason: error.to_string() })?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    validations: &[Validation],
    layers: usize,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (800, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let losses = validations.iter().flat_map(|v| v.loss.iter().copied());
    let (low, high) = losses.fold((f64::INFINITY, 0.0f64), |(low, high), x| (low.min(x), high.max(x)));
    let last = validations.last().map_or(1, |v| v.step);
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(48)
        .build_cartesian_2d(0..last, (low - 0.1).max(0.0)..high.max(low + 0.1))?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("held-out loss, nats a token")
        .light_line_style(WHITE)
        .draw()?;
    for l in 0..layers {
        let hue = 0.7 * l as f64 / layers as f64;
        let style = HSLColor(hue, 0.8, 0.42).stroke_width(if l + 1 == layers { 3 } else { 1 });
        chart
            .draw_series(LineSeries::new(validations.iter().map(|v| (v.step, v.loss[l])), style))?
            .label(format!("exit {}", l + 1))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    root.present()?;
    Ok(())
}
