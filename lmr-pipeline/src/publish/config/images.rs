//! Preprocessing as transformers and timm write it down.

use serde_json::{Map, Value, json};

use crate::preprocess::{Interpolation, Preprocessing, Resize};

/// `preprocessor_config.json`.
pub fn transformers(images: &Preprocessing) -> Value {
    let resample = match images.interpolation {
        Interpolation::Nearest => 0,
        Interpolation::Lanczos => 1,
        Interpolation::Bilinear => 2,
        Interpolation::Bicubic => 3,
    };
    let sides = |[height, width]: [usize; 2]| json!({ "height": height, "width": width });
    // ViT's own processor does not crop; CLIP's does all that is said here.
    let (processor, size, crops) = match images.resize {
        Resize::Exact(resized) if resized == images.size => ("ViTImageProcessor", sides(resized), false),
        Resize::Exact(resized) => ("CLIPImageProcessor", sides(resized), true),
        Resize::ShortestEdge(edge) => ("CLIPImageProcessor", json!({ "shortest_edge": edge }), true),
    };
    let mut config = json!({
        "image_processor_type": processor,
        "do_resize": true,
        "size": size,
        "resample": resample,
        "do_center_crop": crops,
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": images.mean,
        "image_std": images.std,
    });
    if let (true, Some(config)) = (crops, config.as_object_mut()) {
        config.insert("crop_size".into(), sides(images.size));
    }
    config
}

/// The part of timm's `pretrained_cfg` that is about images; `None` if timm cannot express it.
pub fn timm(images: &Preprocessing) -> Option<Map<String, Value>> {
    let [height, width] = images.size;
    let (share, mode) = match images.resize {
        Resize::Exact(resized) if resized == images.size => (1.0, "squash"),
        Resize::Exact(resized) => {
            let share = kept(height, resized[0])?;
            ((width as f64 / share).floor() as usize == resized[1]).then_some((share, "squash"))?
        }
        Resize::ShortestEdge(edge) if height == width => (kept(height, edge)?, "center"),
        Resize::ShortestEdge(_) => return None,
    };
    let config = json!({
        "input_size": [images.mean.len(), height, width],
        "interpolation": images.interpolation,
        "crop_pct": share,
        "crop_mode": mode,
        "mean": images.mean,
        "std": images.std,
    });
    config.as_object().cloned()
}

/// The share of `resized` pixels that a crop of `side` keeps, for a reader that divides by it and rounds down. `None`
/// outside of what readers accept.
fn kept(side: usize, resized: usize) -> Option<f64> {
    let share = side as f64 / resized as f64;
    let exact = [share, share.next_down()].into_iter().find(|share| (side as f64 / share).floor() == resized as f64);
    exact.filter(|share| (0.1..=1.0).contains(share))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_kept_share_gives_the_size_back(side in 1usize..=4096, more in 0usize..=4096) {
            let resized = side + more;
            prop_assume!(side * 10 >= resized);
            let share = kept(side, resized);
            prop_assert_eq!(share.map(|share| (side as f64 / share).floor() as usize), Some(resized));
        }
    }
}
