//! `lmr inspect`.

use std::io::Write;
use std::path::{Path, PathBuf};

use comfy_table::CellAlignment;
use lmr_pipeline::inspect::{Inspection, Looked, inspect};

use super::table;
use crate::console::{Console, Verbosity};

/// Which checkpoint.
#[derive(clap::Args)]
pub struct Arguments {
    /// A safetensors or GGUF file, the index of several, what torch.save wrote, or a folder with one of them.
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// Which state dict of a `.pth` file, where there are several.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Reads the checkpoint and prints what it holds.
    pub fn run(self) -> anyhow::Result<()> {
        let _log = Console::new(Verbosity { verbose: 0, quiet: true });
        let found = inspect(&self.checkpoint, self.key.as_deref())?;
        let text = if self.json { serde_json::to_string_pretty(&found)? } else { page(&found, &self.checkpoint) };
        Ok(writeln!(std::io::stdout(), "{text}")?)
    }
}

fn page(found: &Inspection, checkpoint: &Path) -> String {
    let mut parts = vec![summary(found).to_string(), layers(&found.tensors).to_string()];
    parts.push(match found.model_table(checkpoint) {
        Some(table) => format!("a pipeline loads it with\n\n{table}\n"),
        None => "it is for none of the architectures that a pipeline can load".into(),
    });
    match found.warnings.as_slice() {
        [] => parts.push("nothing looks wrong".into()),
        warnings => parts.extend(warnings.iter().map(|warning| format!("warning: {warning}"))),
    }
    parts.join("\n")
}

fn summary(found: &Inspection) -> comfy_table::Table {
    let mut table = table(["checkpoint", ""]);
    let unknown = || "unknown".to_string();
    let format = serde_json::to_value(found.format).ok().and_then(|name| Some(name.as_str()?.to_string()));
    let dtypes: Vec<String> = found.dtypes.iter().map(|(dtype, count)| format!("{dtype} ({count})")).collect();
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            table.add_row([name.to_string(), value]);
        }
    };
    row("format", format.unwrap_or_else(unknown));
    row("bytes", found.bytes.to_string());
    row("sha256", found.sha256.clone());
    row("quantized", found.quantized.clone().unwrap_or_default());
    row("key", found.key.clone());
    row("prefix", found.prefix.clone());
    row("naming", found.naming.map_or_else(unknown, String::from));
    row("head", found.head.clone().unwrap_or_else(unknown));
    row("classes", found.classes.map_or_else(unknown, |classes| classes.to_string()));
    row("parameters", found.parameters.to_string());
    row("dtypes (tensors)", dtypes.join(", "));
    if let Some(config) = &found.config {
        row("config.json", config.architecture.clone());
        if let Some(images) = &config.preprocessing {
            row("input", format!("{}x{}, {:?}", images.size[0], images.size[1], images.interpolation).to_lowercase());
            row("normalization", format!("mean {:?}, std {:?}", images.mean, images.std));
        }
    }
    found.notes.iter().for_each(|(name, value)| row(&format!("note: {name}"), value.clone()));
    table
}

fn layers(layers: &[Looked]) -> comfy_table::Table {
    let mut table = table(["tensor", "dtype", "shape", "min", "max", "mean", "std", "zeros %"]);
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let number = |value: Option<f64>| value.map_or("-".to_string(), short);
    for layer in layers {
        let shape: Vec<String> = layer.shape.iter().map(usize::to_string).collect();
        table.add_row([
            layer.name.clone(),
            layer.dtype.clone(),
            shape.join("×"),
            number(layer.min),
            number(layer.max),
            number(layer.mean),
            number(layer.std),
            format!("{:.1}", 100.0 * layer.zeros),
        ]);
    }
    table
}

/// Four digits, with an exponent where that is shorter.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if (1e-3..1e5).contains(&size) => format!("{value:.4}"),
        _ => format!("{value:.3e}"),
    }
}
