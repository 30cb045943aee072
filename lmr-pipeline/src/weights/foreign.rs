//! Files that people take for checkpoints: what they are, and how to get from them to one that is read here.

use std::path::Path;

/// How to get a checkpoint out of a model that Python can load.
const STATE_DICT: &str = "load the model in PyTorch and save its weights: safetensors.torch.save_file(model.state_dict(), \
                          \"model.safetensors\")";
const KERAS: &str =
    "Keras' names and layouts are not PyTorch's: take the PyTorch version of the model, or port the weights";

/// What a file is that begins so, if it is known and no checkpoint.
pub fn told(head: &[u8], path: &Path) -> Option<String> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    let text = String::from_utf8_lossy(head).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    let found = if text.starts_with("version https://git-lfs") {
        "a Git LFS pointer, not the file that it stands for; run `git lfs pull`, or download the file itself".into()
    } else if ["<!doctype", "<html", "<head", "<?xml"].iter().any(|start| text.starts_with(start)) {
        "a web page, not a checkpoint; the download went to a page about the file: take the link that ends in its name \
         (on the Hugging Face Hub, with `/resolve/` and not `/blob/`)"
            .into()
    } else if head.starts_with(b"\x89HDF\r\n\x1a\n") {
        format!("an HDF5 file, as Keras saves models; {KERAS}")
    } else if head.get(4..8) == Some(b"TFL3") {
        "a TensorFlow Lite model; its weights are often rounded and always in another layout: take the model that it was \
         converted from"
            .into()
    } else if ["layers-model", "graph-model", "modeltopology"]
        .iter()
        .any(|part| text.starts_with('{') && text.contains(part))
    {
        format!("a TensorFlow.js model; {KERAS}")
    } else if is_onnx(head, &ending) {
        format!("an ONNX model, a graph and not only weights; {STATE_DICT}, of the model that it was exported from")
    } else if ending == "pb" {
        format!("a TensorFlow graph; {KERAS}")
    } else if head.starts_with(&[0x1f, 0x8b]) || head.starts_with(b"BZh") || head.starts_with(b"7z\xbc\xaf") {
        "a compressed archive; unpack it first".into()
    } else if head.starts_with(b"\x93NUMPY") {
        format!("a NumPy array; {STATE_DICT}")
    } else if head.starts_with(b"\x89PNG") || head.starts_with(&[0xff, 0xd8, 0xff]) {
        "an image, not a checkpoint".into()
    } else if ["joblib", "sav"].contains(&ending.as_str()) && matches!(head, [0x78, ..] | [0x80, 2..=5, ..]) {
        joblib()
    } else {
        return None;
    };
    Some(format!("is {found}"))
}

/// An ONNX file is a protocol buffer without a signature: the version of its format (1 to 15), then who made it or the graph.
fn is_onnx(head: &[u8], ending: &str) -> bool {
    ending == "onnx"
        || matches!(head, [0x08, 1..=15, 0x12, length, name, ..] if *length > 0 && name.is_ascii_alphabetic())
}

/// What a zip file is that `torch.save` did not write.
pub fn archive(file: &[u8]) -> Option<String> {
    // The directory, with the names of everything, is at the end.
    let directory = &file[file.len().saturating_sub(1 << 20)..];
    let has = |name: &[u8]| directory.windows(name.len()).any(|part| part == name);
    let found = if has(b"constants.pkl") {
        "TorchScript, a program; expected a state dict: torch.save(torch.jit.load(path).state_dict(), \"model.pth\")"
            .into()
    } else if has(b"model.weights.h5") {
        format!("a Keras model; {KERAS}")
    } else if has(b"serialized_exported_program") || has(b"archive_format") {
        format!("a program of torch.export; {STATE_DICT}, of torch.export.load(path).module()")
    } else if has(b".npy") {
        format!("an archive of NumPy arrays; {STATE_DICT}")
    } else {
        return None;
    };
    Some(format!("is {found}"))
}

/// What a pickle is that `torch.save` did not write.
pub fn pickle(file: &[u8]) -> String {
    let start = &file[..file.len().min(1 << 16)];
    let has = |name: &[u8]| start.windows(name.len()).any(|part| part == name);
    match has(b"joblib") || has(b"sklearn") {
        true => format!("is {}", joblib()),
        false => {
            format!("is a pickle, but none that torch.save wrote; expected safetensors or a state dict: {STATE_DICT}")
        }
    }
}

fn joblib() -> String {
    format!("a pickle of joblib, as scikit-learn saves its models; if there is a network in it, {STATE_DICT}")
}

/// What a JSON file is that is no index of shards.
pub fn json(file: &[u8]) -> Option<String> {
    let has = |key: &str| file.windows(key.len()).any(|part| part == key.as_bytes());
    (has("\"weightsManifest\"") || has("\"modelTopology\"")).then(|| format!("is a TensorFlow.js model; {KERAS}"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::lfs("model.safetensors", b"version https://git-lfs.github.c", "is a Git LFS pointer")]
    #[case::page("model.pth", b"\n<!DOCTYPE html><html>", "is a web page")]
    #[case::hdf5("model.h5", b"\x89HDF\r\n\x1a\n\0\0", "is an HDF5 file, as Keras saves models")]
    #[case::tflite("model.bin", b"\x1c\0\0\0TFL3\x14\0", "is a TensorFlow Lite model")]
    #[case::onnx("model.bin", b"\x08\x08\x12\x07pytorch", "is an ONNX model")]
    #[case::onnx_by_name("model.onnx", b"\x08\x04\x3a\x10", "is an ONNX model")]
    #[case::gzip("model.tar.gz", b"\x1f\x8b\x08\0", "is a compressed archive; unpack it first")]
    #[case::tensorflow_js("model.json", b"{\"format\":\"layers-model\",\"mo", "is a TensorFlow.js model")]
    #[case::joblib("model.joblib", b"\x80\x04\x95", "is a pickle of joblib")]
    fn foreign_files_are_called_by_their_name(#[case] name: &str, #[case] head: &[u8], #[case] expected: &str) {
        let found = told(head, Path::new(name)).unwrap();
        assert!(found.starts_with(expected), "{found}");
    }

    #[test]
    fn what_is_inside_tells_too() {
        let zip = |name: &str| archive(format!("PK\x03\x04 {name} PK\x05\x06").as_bytes()).unwrap_or_default();
        assert!(zip("m/constants.pkl").starts_with("is TorchScript"));
        assert!(zip("model.weights.h5").starts_with("is a Keras model"));
        assert!(zip("x.npy").starts_with("is an archive of NumPy arrays"));
        assert_eq!(zip("m/data.pkl"), "");
        assert!(pickle(b"\x80\x04csklearn.svm").starts_with("is a pickle of joblib"));
        assert!(pickle(b"\x80\x04N.").starts_with("is a pickle, but none that torch.save wrote"));
        assert!(json(b"{\"a\": 1, \"weightsManifest\": []}").is_some() && json(b"{\"weight_map\": {}}").is_none());
    }

    #[rstest]
    #[case::safetensors(b"\x58\x00\0\0\0\0\0\0{\"a\":")]
    #[case::short_header(b"\x08\x05\0\0\0\0\0\0{\"__metadata__\"")]
    #[case::zip(b"PK\x03\x04\0\0")]
    #[case::pickle(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")]
    #[case::nothing(b"")]
    fn checkpoints_are_not(#[case] head: &[u8]) {
        assert_eq!(told(head, Path::new("model.pth")), None);
    }
}
