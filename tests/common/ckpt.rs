//! PyTorch checkpoints, as `torch.save` writes them: a zip archive with a pickle and a member for each tensor's storage.

use safetensors::Dtype;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A pickle being written.
#[derive(Default)]
pub struct Pickle(pub Vec<u8>);

impl Pickle {
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn text(&mut self, text: &str) -> &mut Self {
        self.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text.as_bytes())
    }

    pub fn number(&mut self, value: i64) -> &mut Self {
        self.raw(&[0x8a, 8]).raw(&value.to_le_bytes())
    }

    pub fn numbers(&mut self, values: &[i64]) -> &mut Self {
        self.raw(b"(");
        for value in values {
            self.number(*value);
        }
        self.raw(b"t")
    }

    /// `name: tensor` of a dictionary.
    pub fn tensor(
        &mut self,
        name: &str,
        class: &str,
        key: &str,
        offset: i64,
        shape: &[i64],
        strides: &[i64],
    ) -> &mut Self {
        self.text(name).raw(b"ctorch._utils\n_rebuild_tensor_v2\n((").text("storage");
        self.raw(format!("ctorch\n{class}\n").as_bytes()).text(key).text("cpu").number(1).raw(b"tQ").number(offset);
        self.numbers(shape).numbers(strides).raw(b"\x89ccollections\nOrderedDict\n)RtR")
    }
}

/// Writes an archive with these members; `data.pkl` among them.
pub fn archive(path: &Path, members: &[(&str, &[u8])]) {
    let mut zip = ZipWriter::new(std::fs::File::create(path).expect("a file"));
    for (name, bytes) in members {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file(*name, options).expect("a member");
        zip.write_all(bytes).expect("a member");
    }
    zip.finish().expect("an archive");
}

/// Writes a checkpoint with these tensors under `state_dict`.
pub fn write(path: &Path, tensors: &BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>) {
    let mut pickle = Pickle::default();
    pickle.raw(b"\x80\x02}(").text("epoch").raw(b"K\x03").text("state_dict").raw(b"ccollections\nOrderedDict\n)R(");
    let mut members: Vec<(String, &[u8])> = Vec::new();
    for (i, (name, (dtype, shape, bytes))) in tensors.iter().enumerate() {
        let class = match dtype {
            Dtype::F32 => "FloatStorage",
            Dtype::F16 => "HalfStorage",
            other => panic!("{other:?}"),
        };
        let shape: Vec<i64> = shape.iter().map(|dim| *dim as i64).collect();
        let strides: Vec<i64> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
        pickle.tensor(name, class, &i.to_string(), 0, &shape, &strides);
        members.push((format!("archive/data/{i}"), bytes));
    }
    pickle.raw(b"uu.");
    let mut all = vec![("archive/data.pkl", pickle.0.as_slice())];
    all.extend(members.iter().map(|(name, bytes)| (name.as_str(), *bytes)));
    archive(path, &all);
}
