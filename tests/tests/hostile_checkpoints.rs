//! Checkpoints that somebody made to do harm: a clear error, little memory, nothing run.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use lmr_pipeline::weights::{Checkpoint, read};
use lmr_tests::Project;
use proptest::prelude::*;
use rstest::rstest;
use tempfile::TempDir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Counts what the thread that reads a checkpoint holds; reading uses no other.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: isize) {
    // A thread that ends frees after its counters are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the rules of `GlobalAlloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the rules of `GlobalAlloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the rules of `GlobalAlloc`. Without this, huge zeroed blocks would be written to.
        unsafe { System.alloc_zeroed(layout) }
    }
}

/// Reads a file and says how many bytes were held at the peak.
fn measured(path: &Path) -> (Result<Checkpoint, String>, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = read(path, None).map_err(|error| error.to_string());
    (result, (PEAK.get() - before) as usize)
}

const MIB: usize = 1 << 20;

fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostile.pth");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// The message about a file that is refused, which names it; at most `memory` bytes were held.
fn refusal(bytes: &[u8], memory: usize) -> String {
    let (_dir, path) = file(bytes);
    let (result, held) = measured(&path);
    let message = result.err().unwrap();
    assert!(held <= memory, "{held} bytes held: {message}");
    assert!(message.starts_with(&path.display().to_string()), "{message}");
    assert!(message.len() < 2000 && !message.contains(|c: char| c.is_control()), "{message}");
    message
}

// Small builders.

fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(CompressionMethod::Stored)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A `.pth` file around a pickle's instructions, with one storage of 16 bytes called `0`.
fn pth(body: &[u8]) -> Vec<u8> {
    let pickle = [b"\x80\x02", body, b"."].concat();
    zip(&[("a/data.pkl", &pickle), ("a/byteorder", b"little"), ("a/data/0", &[0; 16]), ("a/version", b"3\n")])
}

fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn integer(value: i64) -> Vec<u8> {
    [&[0x8a, 8][..], &value.to_le_bytes()].concat()
}

fn tuple(elements: &[i64]) -> Vec<u8> {
    [&b"("[..], &elements.iter().flat_map(|element| integer(*element)).collect::<Vec<u8>>(), b"t"].concat()
}

fn tensor_of(class: &str, key: &str, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        format!("ctorch\n{class}\n").into_bytes(),
        text(key),
        text("cpu"),
        integer(4),
        b"tQ".to_vec(),
        integer(offset),
        tuple(shape),
        tuple(strides),
        b"\x89NtR".to_vec(),
    ]
    .concat()
}

fn tensor(offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    tensor_of("FloatStorage", "0", offset, shape, strides)
}

/// A dict with one entry.
fn dict(name: &str, value: &[u8]) -> Vec<u8> {
    [b"}", text(name).as_slice(), value, b"s"].concat()
}

fn weight(value: &[u8]) -> Vec<u8> {
    pth(&dict("w", value))
}

const SOUND: (&[i64], &[i64]) = (&[2, 2], &[2, 1]);

#[test]
fn the_builders_build_what_can_be_read() {
    let (_dir, path) = file(&weight(&tensor(0, SOUND.0, SOUND.1)));
    assert_eq!(measured(&path).0.unwrap().state["w"].dims(), [2, 2]);
}

#[rstest]
#[case::negative_offset(tensor(-1, SOUND.0, SOUND.1), "a negative offset")]
#[case::offset_outside(tensor(1, SOUND.0, SOUND.1), "reaches outside of its storage, which has 4 elements")]
#[case::offset_overflow(tensor(i64::MAX, SOUND.0, SOUND.1), "reaches outside of its storage")]
#[case::negative_dimension(tensor(0, &[-2, 2], &[2, 1]), "a negative dimension")]
#[case::negative_stride(tensor(0, &[2, 2], &[-2, 1]), "a negative one")]
#[case::stride_outside(tensor(0, &[2, 2], &[3, 1]), "reaches outside of its storage")]
#[case::stride_overflow(tensor(0, &[2, 2], &[i64::MAX, i64::MAX]), "reaches outside of its storage")]
#[case::one_tebibyte(tensor(0, &[1 << 19, 1 << 19], &[1 << 19, 1]), "its storage has 4 elements")]
#[case::one_tebibyte_of_one_number(tensor(0, &[1 << 19, 1 << 19], &[0, 0]), "its storage has 4 elements")]
#[case::shape_overflow(tensor(0, &[i64::MAX, i64::MAX], &[0, 0]), "its storage has 4 elements")]
#[case::empty_overflow(tensor(0, &[0, i64::MAX, i64::MAX], &[0, 0, 0]), "which no memory holds")]
#[case::ranks_differ(tensor(0, &[2, 2], &[1]), "2 dimensions and 1 strides")]
#[case::rank(tensor(0, &[1; 1000], &[1; 1000]), "too many")]
#[case::complex(tensor_of("ComplexFloatStorage", "0", 0, SOUND.0, SOUND.1), "a storage of type \"ComplexFloatStorage\"")]
#[case::wider_dtype(tensor_of("DoubleStorage", "0", 0, SOUND.0, SOUND.1), "its storage has 2 elements")]
#[case::no_boolean(tensor_of("BoolStorage", "../../etc/passwd", 0, SOUND.0, SOUND.1), "in \"../../etc/passwd\", which is missing")]
#[case::no_storage(b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR".to_vec(), "a storage that is described in an unknown way")]
#[case::long_storage_name(tensor_of("FloatStorage", &"x".repeat(MIB / 2), 0, SOUND.0, SOUND.1), "a storage that is described in an unknown way")]
#[case::no_arguments(b"ctorch._utils\n_rebuild_tensor_v2\n)R".to_vec(), "lacks a storage")]
fn tensors(#[case] tensor: Vec<u8>, #[case] expected: &str) {
    let message = refusal(&weight(&tensor), MIB);
    assert!(message.contains("tensor \"w\" ") && message.contains(expected), "{message}");
}

#[test]
fn a_storage_that_is_shared_too_often() {
    let shared = |count: usize| {
        let entries: Vec<u8> = (0..count).flat_map(|i| [text(&format!("{i}")), b"h\0".to_vec()].concat()).collect();
        let body = [&tensor(0, &[64, 1024], &[1024, 1])[..], b"q\x000}(", &entries, b"u."].concat();
        zip(&[("a/data.pkl", &[b"\x80\x02", &body[..]].concat()), ("a/data/0", &vec![0; 64 * 1024 * 4])])
    };
    let (_dir, path) = file(&shared(2));
    assert_eq!(measured(&path).0.unwrap().state.len(), 2);
    let message = refusal(&shared(1000), 2 * MIB);
    assert!(message.contains("share storages so often"), "{message}");
}

/// Pickles of at most 1 MB and a few 10 MB.
#[rstest]
#[case::nesting(pth(&b")\x85".repeat(500_000)), "holds no state dict")]
#[case::marks(pth(&b"(".repeat(1_000_000)), "takes from an empty stack")]
#[case::doubling(pth(&[&b")"[..], &b"2\x86".repeat(64)].concat()), "holds no state dict")]
#[case::doubling_dicts(pth(&[&b"}"[..], &[text("a"), b"2\x86".to_vec()].concat().repeat(64)].concat()), "holds no state dict")]
#[case::own_element(pth(b"]q\x00h\x00a"), "holds no state dict")]
#[case::own_value(pth(&[b"}q\x00".to_vec(), text("a"), b"h\x00s".to_vec()].concat()), "holds no state dict")]
#[case::long_string(pth(b"X\xff\xff\xff\x7fabc"), "2147483647 bytes should follow")]
#[case::memo(pth(&[&b"N"[..], &b"\x94".repeat(1_100_000)].concat()), "remembers more than")]
#[case::lists(pth(&b"]".repeat(1_100_000)), "builds more than")]
#[case::long_name(pth(&[b"c".to_vec(), b"x".repeat(1 << 20), b"\n\n".to_vec()].concat()), "a name without an end")]
#[case::protocol_0(pth(b"I1\n"), "which torch.save does not write")]
#[case::no_end(zip(&[("a/data.pkl", b"\x80\x02N")]), "is cut off")]
#[case::name_of_a_tensor(pth(&dict("\u{1b}[2J", &tensor(0, SOUND.0, SOUND.1))), "a tensor called \"\\u{1b}[2J\"")]
#[case::name_of_a_state_dict(pth(&dict("\u{1b}[2J", &dict("w", &tensor(0, SOUND.0, SOUND.1)))), "holds no state dict")]
#[case::state_dict_is_a_list(pth(&[b"]".to_vec(), tensor(0, SOUND.0, SOUND.1), b"a".to_vec()].concat()), "holds no state dict")]
fn pickles(#[case] bytes: Vec<u8>, #[case] expected: &str) {
    let message = refusal(&bytes, 100 * MIB);
    assert!(message.contains(expected), "{message}");
}

/// As much as the machine can be made to hold: objects with items, all of them remembered.
#[test]
fn the_most_expensive_pickle() {
    let objects = b"h\0h\x01RNNs\x940".repeat(1_000_000);
    let message = refusal(&pth(&[b"cx\ny\nq\0)q\x01", &objects[..]].concat()), 400 * MIB);
    assert!(message.contains("holds no state dict"), "{message}");
}

/// A module whose two members are the module itself.
#[test]
fn modules_in_a_circle() {
    let members = [b"}".to_vec(), text("a"), b"h\0s".to_vec(), text("b"), b"h\0s".to_vec()].concat();
    let body = [b"cmodels\nNet\n)\x81q\0".to_vec(), dict("_modules", &members), b"b".to_vec()].concat();
    let message = refusal(&pth(&body), MIB);
    assert!(message.contains("nests more than 64 modules"), "{message}");
}

/// What would run in Python: a command as a value, as the state dict's class, as what builds a tensor's storage.
#[rstest]
#[case::beside(|attack: &[u8]| [dict("w", &tensor(0, SOUND.0, SOUND.1)), text("x"), attack.to_vec(), b"s".to_vec()].concat(), true)]
#[case::before(|attack: &[u8]| [attack, b"0", &dict("w", &tensor(0, SOUND.0, SOUND.1))].concat(), true)]
#[case::as_the_weight(|attack: &[u8]| dict("w", attack), false)]
#[case::as_the_file(|attack: &[u8]| attack.to_vec(), false)]
fn nothing_is_run(#[case] body: fn(&[u8]) -> Vec<u8>, #[case] readable: bool) {
    let dir = tempfile::tempdir().unwrap();
    let proof = dir.path().join("proof");
    let command = text(&format!("touch {}", proof.display()));
    for callable in ["cposix\nsystem\n", "cbuiltins\neval\n", "csubprocess\ncheck_output\n"] {
        let attack = [callable.as_bytes(), &command, b"\x85R"].concat();
        let (_dir, path) = file(&pth(&body(&attack)));
        assert_eq!(measured(&path).0.is_ok(), readable, "{callable}");
        assert!(!proof.exists());
    }
}

fn sound() -> Vec<u8> {
    weight(&tensor(0, SOUND.0, SOUND.1))
}

/// Replaces the last occurrence, which in a zip file is the one in the directory.
fn replaced(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).rposition(|part| part == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

/// The record of the last entry, `a/version`, with a field changed.
fn last_entry(offset: usize, field: &[u8]) -> Vec<u8> {
    let mut bytes = sound();
    let at = bytes.windows(4).rposition(|part| part == b"PK\x01\x02").unwrap() + offset;
    bytes[at..at + field.len()].copy_from_slice(field);
    bytes
}

fn end_record(offset: usize, field: &[u8]) -> Vec<u8> {
    let mut bytes = sound();
    let at = bytes.len() - 22 + offset;
    bytes[at..at + field.len()].copy_from_slice(field);
    bytes
}

#[rstest]
#[case::cut_off(sound()[..sound().len() - 30].to_vec(), "does not end as one")]
#[case::only_a_beginning(b"PK\x03\x04".to_vec(), "does not end as one")]
#[case::something_behind([sound(), b"more".to_vec()].concat(), "does not end as one")]
#[case::deflated(last_entry(10, &[8, 0]), "\"a/version\" is compressed")]
#[case::bomb(last_entry(24, &[0, 0, 0, 0x40]), "\"a/version\" is compressed")]
#[case::encrypted(last_entry(8, &[1, 0]), "\"a/version\" is encrypted")]
#[case::too_long(last_entry(20, &[0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0]), "\"a/version\" lies outside of the file")]
#[case::zip64(last_entry(20, &[0xff; 8]), "\"a/version\" lies outside of the file")]
#[case::elsewhere(last_entry(42, &[0xf0, 0xff, 0xff, 0x7f]), "\"a/version\" lies outside of the file")]
#[case::checksum(last_entry(16, &[1, 2, 3, 4]), "\"a/version\" is damaged: its checksum is wrong")]
#[case::twice(replaced(zip(&[("a/x", b""), ("a/y", b"")]), b"a/y", b"a/x"), "\"a/x\" occurs twice")]
#[case::more_entries(end_record(10, &[200, 0]), "its zip directory is damaged")]
#[case::many_entries(end_record(10, &[0xff, 0xff]), "its zip directory is damaged")]
#[case::directory_elsewhere(end_record(16, &[0xff, 0xff, 0xff, 0x7f]), "lies outside of the file")]
#[case::no_pickle(zip(&[("a/data/0", b"")]), "expected one entry data.pkl")]
#[case::two_pickles(zip(&[("a/data.pkl", b""), ("b/data.pkl", b"")]), "expected one entry data.pkl")]
#[case::big_endian(zip(&[("a/data.pkl", b"\x80\x02N."), ("a/byteorder", b"big")]), "big-endian")]
#[case::torch_script(zip(&[("a/data.pkl", b"\x80\x02N."), ("a/constants.pkl", b"")]), "is TorchScript")]
#[case::another_pickle(b"\x80\x04\x95\x0a\0\0\0\0\0\0\0\x8c\x01a\x94.".to_vec(), "is a pickle, but none that torch.save wrote")]
fn archives(#[case] bytes: Vec<u8>, #[case] expected: &str) {
    let message = refusal(&bytes, MIB);
    assert!(message.contains(expected), "{message}");
}

/// 100 names for the same megabyte.
#[test]
fn entries_that_overlap() {
    let mut bytes = zip(&[("a/data.pkl", b"\x80\x02N."), ("a/data/0", &vec![0; MIB])]);
    let start = bytes.windows(4).position(|part| part == b"PK\x01\x02").unwrap();
    let last = bytes.windows(4).rposition(|part| part == b"PK\x01\x02").unwrap();
    let end = bytes.split_off(bytes.len() - 22);
    let record = bytes[last..].to_vec();
    for i in 0..100 {
        bytes.extend(replaced(record.clone(), b"a/data/0", format!("b/da/{i:03}").as_bytes()));
    }
    let size = (bytes.len() - start) as u32;
    bytes.extend([&end[..8], &[102, 0, 102, 0], &size.to_le_bytes(), &end[16..]].concat());
    let message = refusal(&bytes, 3 * MIB);
    assert!(message.contains("its zip entries overlap"), "{message}");
}

const LEGACY_HEAD: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";

#[rstest]
#[case::cut_off(b"".to_vec(), "is cut off")]
#[case::big_endian([b"\x80\x02".to_vec(), dict("little_endian", b"\x89"), b".".to_vec()].concat(), "big-endian")]
#[case::no_storages(legacy(b"]", b""), "has its numbers in \"0\", which is missing")]
#[case::unknown_storage(legacy(&[b"]".to_vec(), text("1"), b"a".to_vec()].concat(), b""), "storage \"1\"")]
#[case::long_storage(legacy(&[b"]".to_vec(), text("0"), b"a".to_vec()].concat(), &[0xff; 40]), "cut off or damaged at storage \"0\"")]
#[case::short_storage(legacy(&[b"]".to_vec(), text("0"), b"a".to_vec()].concat(), &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "its storage has 1 elements")]
#[case::no_list(legacy(b"N", b""), "list of storages is damaged")]
fn old_files(#[case] rest: Vec<u8>, #[case] expected: &str) {
    let message = refusal(&[LEGACY_HEAD, &rest].concat(), MIB);
    assert!(message.contains(expected), "{message}");
}

/// What follows the head of an old file: system, object, keys and storages.
fn legacy(keys: &[u8], storages: &[u8]) -> Vec<u8> {
    let system = dict("little_endian", b"\x88");
    let object = dict("w", &tensor(0, SOUND.0, SOUND.1));
    let pickles = [&system[..], &object, keys].map(|body| [b"\x80\x02", body, b"."].concat());
    [pickles.concat(), storages.to_vec()].concat()
}

// Shards.

fn shard(tensors: &[(&str, Vec<f32>)]) -> Vec<u8> {
    let tensor = |values: &Vec<f32>| candle_core::Tensor::new(values.as_slice(), &candle_core::Device::Cpu).unwrap();
    let state = tensors.iter().map(|(name, values)| (name.to_string(), tensor(values))).collect();
    lmr_pipeline::tensors::to_safetensors(&state, &Default::default()).unwrap()
}

fn sharded(index: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("model")).unwrap();
    let path = |name: &str| dir.path().join("model").join(name);
    std::fs::write(path("1.safetensors"), shard(&[("a", vec![1.0]), ("b", vec![2.0, 3.0])])).unwrap();
    std::fs::write(path("2.safetensors"), shard(&[("c", vec![4.0])])).unwrap();
    std::fs::write(path("3.safetensors"), shard(&[("a", vec![5.0])])).unwrap();
    std::fs::write(path("../outside.safetensors"), shard(&[("d", vec![6.0])])).unwrap();
    std::fs::write(path("model.safetensors.index.json"), index).unwrap();
    let index = path("model.safetensors.index.json");
    (dir, index)
}

#[test]
fn shards_are_one_checkpoint() {
    let (_dir, path) = sharded(
        r#"{"metadata": {"total_size": 16}, "weight_map": {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}"#,
    );
    let checkpoint = measured(&path).0.unwrap();
    assert_eq!(checkpoint.state.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(checkpoint.state["b"].to_vec1::<f32>().unwrap(), [2.0, 3.0]);
    let files = ["model.safetensors.index.json", "1.safetensors", "2.safetensors"];
    let bytes = files.map(|name| std::fs::read(path.with_file_name(name)).unwrap()).concat();
    assert_eq!((checkpoint.sha256, checkpoint.bytes), (lmr_pipeline::tensors::sha256(&bytes), bytes.len() as u64));
}

#[rstest]
#[case::outside(
    r#"{"weight_map": {"d": "../outside.safetensors"}}"#,
    "names the shard \"../outside.safetensors\"; expected a file in the same folder"
)]
#[case::absolute(r#"{"weight_map": {"d": "/etc/passwd"}}"#, "expected a file in the same folder")]
#[case::missing_shard(r#"{"weight_map": {"a": "4.safetensors"}}"#, "names the shard 4.safetensors, which is not there")]
#[case::missing_tensor(
    r#"{"weight_map": {"c": "2.safetensors", "x": "2.safetensors"}}"#,
    "puts the tensor `x` into 2.safetensors, which does not have it"
)]
#[case::unnamed_tensor(
    r#"{"weight_map": {"a": "1.safetensors"}}"#,
    "1.safetensors: has the tensor `b`, which the index does not name"
)]
#[case::twice(
    r#"{"weight_map": {"a": "1.safetensors", "b": "1.safetensors", "c": "3.safetensors"}}"#,
    "3.safetensors: has the tensor `a`, which another shard has too"
)]
#[case::swapped(r#"{"weight_map": {"c": "3.safetensors", "a": "2.safetensors"}}"#, "which the index puts into")]
#[case::itself(r#"{"weight_map": {"c": "model.safetensors.index.json"}}"#, "no safetensors file")]
#[case::no_map(r#"{"metadata": {}}"#, "missing field `weight_map`")]
#[case::no_json("{", "is no index of safetensors files")]
#[case::name(r#"{"weight_map": {"\u001b[2J": "1.safetensors"}}"#, "a tensor called \"\\u{1b}[2J\"")]
fn indices(#[case] index: &str, #[case] expected: &str) {
    let (_dir, path) = sharded(index);
    let (result, held) = measured(&path);
    let message = result.err().unwrap();
    assert!(message.contains(expected) && !message.contains(|c: char| c.is_control()), "{message}");
    assert!(held <= MIB, "{held}");
}

/// The program says it as it says everything: on one line, with exit code 2, and nothing is left behind.
#[test]
fn the_program_refuses_what_the_reader_refuses() {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    project.write("model.pth", weight(&tensor(-1, SOUND.0, SOUND.1)));
    project.edit("pipeline.toml", "model.safetensors", "model.pth");
    let before = project.files();
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""));
    assert!(run.stderr.contains("model.pth: tensor \"w\" has a negative offset"), "{}", run.stderr);
    assert_eq!(project.files(), before);
}

// GGUF.

/// A file with rows in the densest blocks there are, and a vector.
fn gguf() -> Vec<u8> {
    use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
    let tensor = |shape: &[usize], dtype| {
        let tensor = candle_core::Tensor::ones(shape, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        QTensor::quantize(&tensor, dtype).unwrap()
    };
    let (weight, bias) = (tensor(&[4, 256], GgmlDType::Q2K), tensor(&[4], GgmlDType::F32));
    let tags = gguf_file::Value::Array(vec![gguf_file::Value::U32(7); 5]);
    let name = gguf_file::Value::String("resnet18".into());
    let values = [("general.architecture", &name), ("general.tags", &tags)];
    let mut file = Cursor::new(Vec::new());
    gguf_file::write(&mut file, &values, &[("fc.weight", &weight), ("fc.bias", &bias)]).unwrap();
    file.into_inner()
}

/// As [`gguf`], with bytes changed, numbers blown up, and cut off.
fn mutated_gguf() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let numbers = prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 0u32..64), 0..3);
    (bytes, numbers, prop::option::weighted(0.2, any::<prop::sample::Index>())).prop_map(|(bytes, numbers, cut)| {
        let mut file = gguf();
        // Most of the file is data, in which any byte is fine.
        let header = 300.min(file.len());
        bytes.iter().for_each(|(at, byte)| *at.get_mut(&mut file[..header]) = *byte);
        for (at, number, shift) in numbers {
            let at = at.index(header - 8);
            file[at..at + 8].copy_from_slice(&(number >> shift).to_le_bytes());
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        file
    })
}

#[rstest]
#[case::counts(8, &[0xff; 16], "tensors and 18446744073709551615 values take at least")]
#[case::a_tebibyte_of_text(24, &[0, 0, 0, 0, 0, 1, 0, 0], "1099511627776 bytes should follow")]
#[case::version(4, &[9, 0, 0, 0], "of version 9; expected 2 or 3")]
fn gguf_headers(#[case] at: usize, #[case] with: &[u8], #[case] expected: &str) {
    let mut file = gguf();
    file[at..at + with.len()].copy_from_slice(with);
    let message = refusal(&file, MIB);
    assert!(message.contains(expected), "{message}");
}

// Whatever the bytes: no panic, and memory within a small multiple of the file.

const FIXTURES: &[&[u8]] = &[
    include_bytes!("../fixtures/checkpoints/plain.pth"),
    include_bytes!("../fixtures/checkpoints/legacy.pth"),
    include_bytes!("../fixtures/checkpoints/odd_legacy.pth"),
    include_bytes!("../fixtures/checkpoints/attack_result.pt"),
    include_bytes!("../fixtures/checkpoints/module.pth"),
];

/// A file of `fixture` with bytes changed, and cut off.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    (prop::sample::select(FIXTURES), edits, prop::option::weighted(0.2, any::<prop::sample::Index>())).prop_map(
        |(fixture, edits, cut)| {
            let mut bytes = fixture.to_vec();
            edits.iter().for_each(|(at, byte)| *at.get_mut(&mut bytes) = *byte);
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        },
    )
}

/// A sound archive around a fixture's pickle with bytes changed: what a checksum alone would catch otherwise.
fn mutated_pickle() -> impl Strategy<Value = Vec<u8>> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12);
    let body =
        [tensor(0, SOUND.0, SOUND.1), dict("a", b"]"), dict("state_dict", &dict("w", &tensor(0, &[4], &[1])))].concat();
    edits.prop_map(move |edits| {
        let mut body = body.clone();
        edits.iter().for_each(|(at, byte)| *at.get_mut(&mut body) = *byte);
        pth(&body)
    })
}

/// Instructions in any order: more of the machine is reached than by random bytes.
fn instructions() -> impl Strategy<Value = Vec<u8>> {
    let opcodes: Vec<Vec<u8>> = b"().012NRQabdelstu}]"
        .iter()
        .map(|opcode| vec![*opcode])
        .chain([0x81, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8f, 0x90, 0x91, 0x92, 0x93, 0x94].map(|opcode| vec![opcode]))
        .chain([b"h\0", b"q\0", b"h\x01", b"q\x01", b"K\x02", b"K\0"].map(|bytes| bytes.to_vec()))
        .chain([text("a"), text("_modules"), text("storage"), tensor(0, SOUND.0, SOUND.1)])
        .chain(
            [&b"ccollections\nOrderedDict\n"[..], b"ctorch._utils\n_rebuild_tensor_v2\n"].map(|bytes| bytes.to_vec()),
        )
        .collect();
    prop::collection::vec(prop::sample::select(opcodes), 0..60).prop_map(|parts| pth(&parts.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(any::<u8>(), 0..200).prop_map(|rest| [LEGACY_HEAD, &rest].concat()),
        mutated(),
        mutated_pickle(),
        mutated_gguf(),
        instructions(),
    ]) {
        let (_dir, path) = file(&bytes);
        let (result, held) = measured(&path);
        prop_assert!(held <= MIB, "{held} bytes held for {}", bytes.len());
        if let Err(message) = result {
            prop_assert!(message.len() < 2000 && !message.contains(|c: char| c.is_control()), "{message}");
        }
    }
}
