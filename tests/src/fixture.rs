//! Packages for tests: TorchScript written as text, so that a test can say exactly how its model behaves.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

/// A model whose `forward` has this signature and body, in the Python that TorchScript archives hold.
pub struct Script<'s> {
    /// For instance `x: Tensor) -> Tensor`.
    pub signature: &'s str,
    /// The statements.
    pub body: &'s [&'s str],
    /// The manifest, without `engine` and `file`.
    pub manifest: &'s str,
}

/// What a module keeps under a name.
#[derive(Clone, Copy)]
pub enum Attribute {
    /// `int`, from 0 to 255.
    Int(u8),
    /// `List[Tensor]`, empty.
    Tensors,
    /// A buffer of four floats.
    Buffer([f32; 4]),
}

impl Attribute {
    fn kind(self) -> &'static str {
        match self {
            Attribute::Int(_) => "int",
            Attribute::Tensors => "List[Tensor]",
            Attribute::Buffer(_) => "Tensor",
        }
    }

    /// As a pickle has it; a buffer's floats stand in the archive's `data/KEY`.
    fn pickled(self, key: usize) -> Vec<u8> {
        match self {
            Attribute::Int(value) => vec![b'K', value],
            Attribute::Tensors => b"]".to_vec(),
            Attribute::Buffer(_) => {
                let mut tensor =
                    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n".to_vec();
                tensor.extend(pickled_text(&key.to_string()));
                tensor.extend(b"X\x03\0\0\0cpuK\x04tQK\0K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR");
                tensor
            }
        }
    }
}

fn pickled_text(text: &str) -> Vec<u8> {
    let mut pickled = vec![b'X'];
    pickled.extend((text.len() as u32).to_le_bytes());
    pickled.extend(text.as_bytes());
    pickled
}

impl Script<'_> {
    /// Writes the package below `folder` and returns its path.
    pub fn write(&self, folder: &Path, name: &str) -> Result<PathBuf> {
        self.write_with(folder, name, &[])
    }

    /// The same for a module that has attributes.
    pub fn write_with(&self, folder: &Path, name: &str, attributes: &[(&str, Attribute)]) -> Result<PathBuf> {
        let package = folder.join(name);
        fs::create_dir_all(&package)?;
        let manifest = format!("engine = \"torchscript\"\nfile = \"model.pt\"\n{}", self.manifest);
        fs::write(package.join("model.toml"), manifest)?;
        let mut code = String::from("class M(Module):\n  __parameters__ = []\n");
        let buffers = attributes.iter().filter(|(_, attribute)| matches!(attribute, Attribute::Buffer(_)));
        let buffers: String = buffers.map(|(name, _)| format!("\"{name}\", ")).collect();
        code += &format!("  __buffers__ = [{buffers}]\n");
        for (name, attribute) in attributes {
            code += &format!("  {name} : {}\n", attribute.kind());
        }
        code += &format!("  def forward(self: __torch__.M,\n    {}:\n", self.signature);
        for line in self.body {
            code += &format!("    {line}\n");
        }
        // Pickles (protocol 2) of an instance of M, and of an empty tuple.
        let mut data = b"\x80\x02c__torch__\nM\nq\x00)\x81}(".to_vec();
        for (key, (name, attribute)) in attributes.iter().enumerate() {
            data.extend(pickled_text(name));
            data.extend(attribute.pickled(key));
        }
        data.extend(b"ubq\x01.");
        let constants = b"\x80\x02).";
        let mut archive = ZipWriter::new(File::create(package.join("model.pt"))?);
        let members: [(&str, &[u8]); 5] = [
            ("m/data.pkl", &data),
            ("m/code/__torch__.py", code.as_bytes()),
            ("m/constants.pkl", constants),
            ("m/version", b"4\n"),
            ("m/byteorder", b"little"),
        ];
        for (name, content) in members {
            archive.start_file(name, SimpleFileOptions::default().compression_method(CompressionMethod::Stored))?;
            archive.write_all(content)?;
        }
        for (key, (_, attribute)) in attributes.iter().enumerate() {
            if let Attribute::Buffer(values) = attribute {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
                archive.start_file(format!("m/data/{key}"), options)?;
                archive.write_all(&bytes)?;
            }
        }
        archive.finish()?;
        Ok(package)
    }
}

/// Doubles `x`, four floats a row; fails on values over a million; takes about `work` matrix products a batch.
pub fn doubler(folder: &Path, name: &str, work: u32, extra: &str) -> Result<PathBuf> {
    let loops = format!("for _0 in range({work}):");
    let body = [
        "_1 = bool(torch.gt(torch.max(x), 1000000.))",
        "if _1:",
        "  ops.prim.RaiseException(\"a value over a million\")",
        "else:",
        "  pass",
        "w = torch.ones([256, 256])",
        "y = w",
        loops.as_str(),
        "  y = torch.clamp(torch.mm(y, w), 0., 1.)",
        "z = torch.mul(torch.min(y), 0.)",
        "return torch.add(torch.mul(x, 2), z)",
    ];
    let manifest = format!(
        "name = \"{name}\"\ninputs = [{{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }}]\n\
         outputs = [{{ name = \"y\", datatype = \"FP32\", shape = [-1, 4] }}]\n{extra}\n"
    );
    Script { signature: "x: Tensor) -> Tensor", body: &body, manifest: &manifest }.write(folder, name)
}
