//! What a checkpoint of a vision transformer has otherwise than models here, although it computes the same or can be brought
//! to: LayerScale, and positions of another image size.

use candle_core::{Device, Tensor};

use super::ModelSpec;
use super::ZooError;
use crate::Result;
use crate::nn::StateDict;

const POSITIONS: &str = "encoder.pos_embedding";

/// The factors of LayerScale, under the names that timm gives them, and the layer before each.
const SCALES: [(&str, &str); 2] = [("ls1", "self_attention.out_proj"), ("ls2", "mlp.3")];

impl ModelSpec {
    /// What loading `state` for this specification changes in its tensors beside their names, in words.
    pub fn adaptations(&self, state: &StateDict) -> Vec<String> {
        let mut said = Vec::new();
        if state.keys().any(|name| is_scale(name)) {
            said.push("LayerScale is folded into the layers before it".to_owned());
        }
        let positions = ["pos_embed", "vit.embeddings.position_embeddings", POSITIONS];
        if let Some(tensor) = positions.iter().find_map(|name| state.get(*name))
            && let Some((from, to)) = self.sides(tensor)
            && from != to
        {
            said.push(format!("positions of {from}x{from} patches are interpolated to {to}x{to} (bicubic)"));
        }
        said
    }

    /// A state dict under torchvision's names with those changes.
    pub(super) fn adapted(&self, mut state: StateDict) -> Result<StateDict> {
        fold_scales(&mut state)?;
        if let Some(tensor) = state.get(POSITIONS)
            && let Some((from, to)) = self.sides(tensor)
            && from != to
        {
            let resized = resize_positions(tensor, from, to)?;
            state.insert(POSITIONS.into(), resized);
        }
        Ok(state)
    }

    /// Patches on a side that positions with a class token are for, and those that this specification has.
    fn sides(&self, positions: &Tensor) -> Option<(usize, usize)> {
        let spec = self.resolved();
        let (_, tokens, _) = positions.dims3().ok()?;
        let patches = tokens.checked_sub(1)?;
        let from = patches.isqrt();
        (from > 0 && from * from == patches).then_some((from, spec.image_size? / spec.patch_size?))
    }
}

fn is_scale(name: &str) -> bool {
    name.starts_with("blocks.") && SCALES.iter().any(|(scale, _)| name.ends_with(&format!(".{scale}.gamma")))
}

/// What a tensor that loading folded into others must be in a file for which `state` was made, so that it changes nothing:
/// ones for LayerScale; `None` for any other name.
pub fn neutral(name: &str, state: &StateDict) -> Result<Option<Tensor>> {
    if !is_scale(name) {
        return Ok(None);
    }
    let block = name.rsplitn(3, '.').last().unwrap_or_default();
    let like = state.get(&format!("{block}.norm1.weight"));
    Ok(like.map(Tensor::ones_like).transpose()?)
}

/// Multiplies the factors of LayerScale into the rows of the layers before them.
fn fold_scales(state: &mut StateDict) -> Result<()> {
    let scales: Vec<String> = state.keys().filter(|name| is_scale(name)).cloned().collect();
    for name in scales {
        let mut parts = name.split('.').skip(1);
        let (number, scale) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let Some((_, layer)) = SCALES.iter().find(|(known, _)| *known == scale) else { continue };
        let Some(gamma) = state.remove(&name) else { continue };
        for end in ["weight", "bias"] {
            let layer = format!("encoder.layers.encoder_layer_{number}.{layer}.{end}");
            let Some(tensor) = state.get(&layer) else { continue };
            if gamma.rank() != 1 || gamma.dims().first() != tensor.dims().first() {
                return Err(ZooError::Scale { name, found: gamma.dims().to_vec(), layer }.into());
            }
            let factors = gamma.to_dtype(candle_core::DType::F32)?;
            let factors = if tensor.rank() == 2 { factors.unsqueeze(1)? } else { factors };
            let folded = tensor.to_dtype(candle_core::DType::F32)?.broadcast_mul(&factors)?;
            state.insert(layer, folded);
        }
    }
    Ok(())
}

/// Positions for `to` by `to` patches from those for `from` by `from`, the class token's unchanged: bicubic and antialiased, as
/// timm does it (`resample_abs_pos_embed`).
fn resize_positions(positions: &Tensor, from: usize, to: usize) -> Result<Tensor> {
    let (_, tokens, features) = positions.dims3()?;
    let values = positions.to_dtype(candle_core::DType::F32)?;
    let class = values.narrow(1, 0, 1)?;
    let grid: Vec<f32> = values.narrow(1, 1, tokens - 1)?.flatten_all()?.to_vec1()?;
    let shares = bicubic(from, to);
    // Rows, then columns; both in f64.
    let mut rows = vec![0f64; to * from * features];
    for (y, share) in shares.iter().enumerate() {
        for &(source, weight) in share {
            let line = &grid[source * from * features..][..from * features];
            rows[y * from * features..][..from * features]
                .iter_mut()
                .zip(line)
                .for_each(|(out, v)| *out += weight * f64::from(*v));
        }
    }
    let mut resized = vec![0f64; to * to * features];
    for y in 0..to {
        for (x, share) in shares.iter().enumerate() {
            for &(source, weight) in share {
                let line = &rows[(y * from + source) * features..][..features];
                resized[(y * to + x) * features..][..features]
                    .iter_mut()
                    .zip(line)
                    .for_each(|(out, v)| *out += weight * v);
            }
        }
    }
    let resized: Vec<f32> = resized.into_iter().map(|value| value as f32).collect();
    let resized = Tensor::from_vec(resized, (1, to * to, features), &Device::Cpu)?.to_device(class.device())?;
    Ok(Tensor::cat(&[&class, &resized], 1)?)
}

/// For every one of `to` positions, which of `from` it is made of and their shares: the cubic with a = -0.5, widened where
/// there are fewer positions than before.
fn bicubic(from: usize, to: usize) -> Vec<Vec<(usize, f64)>> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let cubic = |x: f64| match x.abs() {
        x if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        x if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
        _ => 0.0,
    };
    let window = |o: usize| {
        let (centre, reach) = ((o as f64 + 0.5) * scale, 2.0 * stretch);
        let begin = (centre - reach + 0.5).max(0.0) as usize;
        let end = ((centre + reach + 0.5) as usize).min(from);
        let shares: Vec<(usize, f64)> = (begin..end).map(|i| (i, cubic((i as f64 + 0.5 - centre) / stretch))).collect();
        let sum: f64 = shares.iter().map(|(_, share)| share).sum();
        shares.into_iter().map(|(i, share)| (i, share / sum)).collect()
    };
    (0..to).map(window).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use rstest::rstest;

    use super::*;
    use crate::rng;
    use crate::zoo::Arch;
    use crate::zoo::naming::{Scheme, from_torchvision};

    fn spec() -> ModelSpec {
        let mut spec = ModelSpec::new(Arch::VitTiny, 4);
        (spec.width, spec.depth, spec.heads) = (Some(6), Some(2), Some(2));
        (spec.image_size, spec.patch_size) = (Some(16), Some(4));
        spec
    }

    fn made(spec: &ModelSpec) -> StateDict {
        let network = spec.fresh(rng::stream(1, "init"), &Device::Cpu).unwrap();
        from_torchvision(&network.params().state_dict().unwrap(), Scheme::Timm).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// `F.interpolate(torch.arange(16.).view(1, 1, 4, 4) ** 2, (to, to), mode="bicubic", antialias=True)` of PyTorch 2.15.
    #[rstest]
    #[case::smaller(2, &SMALLER)]
    #[case::larger(5, &LARGER)]
    fn positions_are_resized_as_pytorch_does(#[case] to: usize, #[case] expected: &[f32]) {
        let grid: Vec<f32> = std::iter::once(7.0).chain((0..16).map(|i| (i * i) as f32)).collect();
        let resized = resize_positions(&Tensor::from_vec(grid, (1, 17, 1), &Device::Cpu).unwrap(), 4, to).unwrap();
        let found = values(&resized);
        assert_eq!((found.len(), found[0]), (1 + to * to, 7.0));
        for (found, expected) in found[1..].iter().zip(expected) {
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
        }
    }

    const SMALLER: [f32; 4] = [13.0107, 27.0637, 109.2538, 149.9941];
    const LARGER: [f32; 25] = [
        -0.7206, -0.4111, 1.0385, 4.1106, 7.4706, 7.8216, 11.9549, 18.1162, 25.9002, 33.0839, 35.4375, 44.2826, 56.25,
        69.84, 81.7356, 89.0156, 102.5725, 120.346, 139.7421, 156.3494, 146.3648, 163.7455, 186.2308, 210.3387,
        230.7698,
    ];

    #[test]
    fn layer_scale_is_folded_and_written_back_as_ones() {
        let spec = spec();
        let mut state = made(&spec);
        let plain = values(&state["blocks.1.mlp.fc2.weight"]);
        let gamma = Tensor::new(&[2f32, 1.0, 1.0, 1.0, 1.0, -0.5], &Device::Cpu).unwrap();
        state.insert("blocks.1.ls2.gamma".into(), gamma);
        assert_eq!(spec.adaptations(&state), ["LayerScale is folded into the layers before it"]);
        let network = spec.load(state.clone(), &Device::Cpu).unwrap();
        let found = network.params().state_dict().unwrap();
        let found = values(&found["encoder.layers.encoder_layer_1.mlp.3.weight"]);
        assert_eq!((found[0], found[24], *found.last().unwrap()), (2.0 * plain[0], plain[24], -0.5 * plain[143]));
        let ones = neutral("blocks.1.ls2.gamma", &state).unwrap().unwrap();
        assert_eq!(values(&ones), [1.0; 6]);
        assert!(neutral("blocks.1.gamma", &state).unwrap().is_none());
        state.insert("blocks.0.ls1.gamma".into(), Tensor::ones(5, DType::F32, &Device::Cpu).unwrap());
        let message = spec.load(state, &Device::Cpu).err().unwrap().to_string();
        assert!(message.contains("`blocks.0.ls1.gamma`: [5] factors"), "{message}");
    }

    #[test]
    fn positions_of_another_image_size_are_said() {
        let state = made(&spec());
        let other = ModelSpec { image_size: Some(8), ..spec() };
        let said = other.adaptations(&state);
        assert_eq!(said, ["positions of 4x4 patches are interpolated to 2x2 (bicubic)"]);
        other.load(state.clone(), &Device::Cpu).unwrap();
        assert!(spec().adaptations(&state).is_empty());
    }
}
