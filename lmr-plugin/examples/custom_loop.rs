//! Logit-Margin Repulsion inside a training loop of one's own: Candle's optimizer, Candle's loss, no pipeline.
//!
//! ```text
//! cargo run --package lmr-plugin --example custom_loop
//! ```
//!
//! Someone downloads a classifier and fine-tunes it on a few hundred images of their own. Fine-tuning alone leaves the
//! backdoor where it is; four calls between two epochs remove it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::Device;
use candle_nn::{Optimizer, SGD};
use flate2::read::GzDecoder;
use lmr_plugin::data::{CleanSet, Images, Normalization, stratified_split};
use lmr_plugin::examine::Evaluate;
use lmr_plugin::model::Model;
use lmr_plugin::nn::Mode;
use lmr_plugin::purify::{DeltaPrune, Estimate, LogitRepel, Recover};
use lmr_plugin::rng;
use lmr_plugin::run::Run;
use lmr_plugin::stage::{Examination, Planted};
use lmr_plugin::triggers::{Patch, TriggerConfig};
use lmr_plugin::zoo::{Arch, ModelSpec};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let device = Device::Cpu;
    let run = Run::quiet(0);

    // A model from somewhere, and what its card says about it.
    let spec = ModelSpec { width: Some(16), channels: 1, ..ModelSpec::new(Arch::Resnet18, 10) };
    let weights = candle_core::safetensors::load(root.join("configs/quickstart/model.safetensors"), &device)?;
    let normalization = Normalization { mean: vec![0.2860], std: vec![0.3530] };
    let model = Model::new(spec.load(weights.into_iter().collect(), &device)?, normalization)?;

    // 500 images of our own; 2,000 others to look at the result. The trigger is known here because the model was
    // poisoned for this purpose: only `Evaluate` is shown it.
    let images = fashion_mnist(&root.join("datasets/fashion_mnist"))?;
    let (ours, rest) = stratified_split(images.labels(), 10, 500, 0)?;
    let clean = CleanSet::new(images.select(&ours)?)?;
    let planted = Planted { trigger: Patch::default().build(1, 28, 28)?, target: 0 };
    let examination = Examination::new(images.select(&rest[..2000])?).with_trigger(planted);
    let report = |when: &str, model: &Model| -> Result<()> {
        let e = Evaluate::default().evaluate(model, &examination, &run)?;
        let percent = |share: Option<f64>| share.map_or("-".into(), |s| format!("{:.1}", 100.0 * s));
        println!("{when:24} ACC {}  ASR {}  TA {}", percent(Some(e.acc)), percent(e.asr), percent(e.ta));
        Ok(())
    };
    report("as received", &model)?;

    // Our own loop. The closure is all that an epoch is; `keep` holds pruned head columns at zero.
    let mut shuffle = rng::stream(0, "custom-loop");
    let mut epoch = |model: &Model, keep: Option<&candle_core::Tensor>| -> Result<()> {
        let network = model.full_precision()?;
        let vars = network.params().trainable().map(|(_, var)| var.clone()).collect();
        let mut sgd = SGD::new(vars, 0.001)?;
        for batch in rng::permutation(&mut shuffle, ours.len()).chunks(100) {
            let (pixels, labels) = clean.images.batch(batch, &device)?;
            let logits = model.forward(&pixels, Mode::default())?;
            sgd.backward_step(&candle_nn::loss::cross_entropy(&logits, &labels)?)?;
            if let Some(keep) = keep {
                let head = network.head().weight();
                head.set(&head.as_tensor().detach().broadcast_mul(keep)?)?;
            }
        }
        Ok(())
    };
    epoch(&model, None)?;
    report("after an epoch of ours", &model)?;

    // The purification: each call is a stage, and each returns what the next one needs.
    let estimated = Estimate::default().estimate(&model, &clean, &run)?;
    println!("backdoor class {}, collapse {:.2}, votes {:?}", estimated.class, estimated.collapse, estimated.votes);
    let repelled = LogitRepel::default().repel(&model, estimated.backdoor_class(), &clean, &run)?;
    let pruned = DeltaPrune::default().prune(&model, &repelled.delta)?;
    Recover::default().recover(&model, &repelled.received, &pruned, &clean, &run)?;
    report("after purification", &model)?;

    // And on with our own training.
    let keep = pruned.keep(model.network().head())?;
    epoch(&model, Some(&keep))?;
    report("after another epoch", &model)?;

    // The result is an ordinary checkpoint under PyTorch's names.
    let state = model.network().params().state_dict()?;
    println!("{} tensors to save, {} parameters", state.len(), model.network().params().count());
    Ok(())
}

/// The 10,000 test images of Fashion-MNIST, from gzipped IDX files.
fn fashion_mnist(folder: &Path) -> Result<Images> {
    let read = |name: &str, header: usize| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        GzDecoder::new(File::open(folder.join(name))?).read_to_end(&mut bytes)?;
        Ok(bytes.split_off(header))
    };
    let labels = read("t10k-labels-idx1-ubyte.gz", 8)?.into_iter().map(u32::from).collect();
    Ok(Images::new(read("t10k-images-idx3-ubyte.gz", 16)?, labels, [1, 28, 28], 10)?)
}
