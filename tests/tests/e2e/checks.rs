//! What `sluice-worker check` says of packages, and that a worker serves what it lets pass.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use sluice_core::broker::Submission;
use sluice_e2e::Stack;
use sluice_e2e::binaries;
use sluice_e2e::fixture::{Attribute, Script};
use sluice_e2e::stack::{envelope, floats, next, rows, submit};
use xtask::broker::Kind;

const FOUR: &str = "name = \"m\"\ninputs = [{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }]\n\
    outputs = [{ name = \"y\", datatype = \"FP32\", shape = [-1, 4] }]\n";

/// Runs `sluice-worker check`, and returns what it prints: on standard output if it succeeds, on standard error if not.
fn check(package: &Path) -> Result<Result<String, String>> {
    let worker = binaries::path("sluice-worker")?;
    let output = Command::new(worker).arg("check").arg(package).args(["--largest", "2"]).output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(if output.status.success() { Ok(out.into_owned()) } else { Err(err.into_owned()) })
}

/// Writes and checks a module of one tensor.
fn of(body: &[&str], attributes: &[(&str, Attribute)]) -> Result<Result<String, String>> {
    let folder = tempfile::tempdir()?;
    let script = Script { signature: "x: Tensor) -> Tensor", body, manifest: FOUR };
    check(&script.write_with(folder.path(), "m", attributes)?)
}

#[test]
fn a_model_that_remembers_calls_is_refused_by_the_names_of_what_it_keeps() -> Result<()> {
    let counter = of(&["self.n = torch.add(self.n, 1)", "return torch.add(x, self.n)"], &[("n", Attribute::Int(3))])?;
    let sum = ["_0 = torch.add_(self.sum, torch.sum(x, [0]))", "return torch.add(x, self.sum)"];
    let sum = of(&sum, &[("sum", Attribute::Buffer([1.0; 4]))])?;
    // Random numbers that change no answer, as dropout draws none in a trained model.
    let count = "self.n = torch.add(self.n, 1)";
    let drawing = of(&["_0 = torch.rand_like(x)", count, "return torch.add(x, self.n)"], &[("n", Attribute::Int(3))])?;
    let forked = [
        "def __forked_function():",
        "  self.n = torch.add(self.n, 1)",
        "  return torch.add(x, self.n)",
        "_1 = fork(__forked_function)",
        "return torch.wait(_1)",
    ];
    let forked = of(&forked, &[("n", Attribute::Int(3))])?;
    for (said, name) in [(counter, "`n`"), (sum, "`sum`"), (drawing, "`n`"), (forked, "`n`")] {
        let said = said.expect_err("it is refused");
        let expected = format!("answers depend on the calls before: forward keeps {name} in the module");
        assert!(said.contains(&expected), "{said}");
    }
    let random = of(&[count, "return torch.add(torch.rand_like(x), self.n)"], &[("n", Attribute::Int(3))])?;
    let said = random.expect_err("nothing tells what it remembers");
    assert!(said.contains("answers are random, and forward keeps `n` in the module"), "{said}");
    Ok(())
}

#[test]
fn what_a_model_writes_and_does_not_read_again_is_told() -> Result<()> {
    let counter = of(&["self.n = torch.add(self.n, 1)", "return torch.mul(x, 2)"], &[("n", Attribute::Int(3))])?;
    // Only in calls that a check never makes.
    let rare = [
        "items = self.items",
        "if torch.gt(torch.size(x, 0), 100000):",
        "  _0 = torch.append(items, x)",
        "else:",
        "  pass",
        "return torch.mul(x, 2)",
    ];
    let rare = of(&rare, &[("items", Attribute::Tensors)])?;
    // Batch normalisation that was left in training writes what its code does not say.
    let training = [
        "_0 = torch.batch_norm(torch.ones([2, 4]), None, None, self.mean, self.var, True, 0.1, 1e-05, False)",
        "return torch.mul(x, 2)",
    ];
    let kept = [("mean", Attribute::Buffer([0.0; 4])), ("var", Attribute::Buffer([1.0; 4]))];
    let training = of(&training, &kept)?;
    for (said, names) in [(counter, "`n`"), (rare, "`items`"), (training, "`mean`, `var`")] {
        let said = said.expect("it is served");
        assert!(said.contains(&format!("forward writes {names}: each slot has a copy of its own")), "{said}");
    }
    let plain = of(&["return torch.relu_(torch.mul(x, 2))"], &[("n", Attribute::Int(3))])?.expect("it is served");
    assert!(!plain.contains("forward writes"), "{plain}");
    Ok(())
}

#[test]
fn rows_are_compared_as_batches_are_formed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let with = |name: &str, signature: &str, body: &[&str], more: &str| -> Result<Result<String, String>> {
        let manifest = format!("{FOUR}{more}\n");
        check(&Script { signature, body, manifest: &manifest }.write(folder.path(), name)?)
    };
    let (one, alone) = ("x: Tensor) -> Tensor", "[batching]\nmax_rows = 1");
    // Traced with one row.
    let said =
        with("traced", one, &["return torch.view(x, [1, 4])"], alone)?.expect("one row is all that it must take");
    assert!(said.contains("batching.max_rows = 1") && said.contains("batches cannot be larger"), "{said}");
    // The first dimension is no row, but for one alone that does no harm.
    let sums = ["return torch.cumsum(x, 0)"];
    let said = with("sums", one, &sums, alone)?.expect("one row alone is right");
    assert!(said.contains("batching.max_rows = 1\n") && said.contains("rows are not independent"), "{said}");
    let refused = with("sums8", one, &sums, "[batching]\nmax_rows = 8")?.expect_err("they depend on each other");
    assert!(refused.contains("rows are not independent"), "{refused}");
    // Nothing but NaN for a row alone, numbers in a batch.
    let normalised =
        ["m = torch.mean(x, [0], True)", "return torch.div(torch.sub(x, m), torch.std(x, [0], True, True))"];
    let refused = with("normalised", one, &normalised, "")?.expect_err("NaN is a difference");
    assert!(refused.contains("rows are not independent"), "{refused}");
    Ok(())
}

#[test]
fn varying_sizes_are_those_of_the_manifest_and_padding_must_not_change_answers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let with = |name: &str, body: &[&str], more: &str| -> Result<Result<String, String>> {
        let manifest = format!(
            "name = \"m\"\ninputs = [{{ name = \"x\", datatype = \"FP32\", shape = [-1, \"samples\"] }}]\n\
             outputs = [{{ name = \"y\", datatype = \"FP32\", shape = [-1] }}]\n{more}\n"
        );
        check(&Script { signature: "x: Tensor) -> Tensor", body, manifest: &manifest }.write(folder.path(), name)?)
    };
    // At least 10 samples.
    let long = ["return torch.select(x, 1, 9)"];
    let refused = with("long", &long, "")?.expect_err("8 are too few");
    assert!(refused.contains("with samples = 8") && refused.contains("`samples = { example = 1000 }`"), "{refused}");
    with("long-16", &long, "[sizes]\nsamples = { example = 16 }")?.expect("it runs");
    with("long-10", &long, "[sizes]\nsamples = { smallest = 10 }\n[padding]\nsamples = {}")?.expect("it runs");
    // A sum does not mind zeros, a mean does.
    with("sum", &["return torch.sum(x, [1])"], "[padding]\nsamples = {}")?.expect("zeros add nothing");
    for padding in ["{}", "{ multiple_of = 16 }"] {
        let refused = with("mean", &["return torch.mean(x, [1])"], &format!("[padding]\nsamples = {padding}"))?;
        let refused = refused.expect_err("zeros count in a mean");
        assert!(refused.contains("padding changes answers"), "{refused}");
    }
    Ok(())
}

#[test]
fn arguments_with_defaults_need_not_be_inputs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let with = |name: &str, signature: &str, body: &[&str]| -> Result<Result<String, String>> {
        check(&Script { signature, body, manifest: FOUR }.write(folder.path(), name)?)
    };
    let scale = with("scale", "x: Tensor,\n    scale: float=2.) -> Tensor", &["return torch.mul(x, scale)"])?;
    scale.expect("a float with a default");
    let size = "x: Tensor,\n    size: Tuple[int, int]=(2, 2)) -> Tensor";
    with("size", size, &["return torch.mul(x, (size)[0])"])?.expect("a tuple with a default");
    let optional = "x: Optional[Tensor]=None) -> Tensor";
    with("optional", optional, &["return ops.prim.unchecked_unwrap_optional(x)"])?.expect("an optional tensor");
    let refused = with("steps", "x: Tensor,\n    steps: int) -> Tensor", &["return torch.mul(x, steps)"])?;
    let refused = refused.expect_err("an int that must be given");
    assert!(refused.contains("the model's forward wants `steps`, int: an input is a tensor"), "{refused}");
    let pair = with("pair", "x: Tensor,\n    y: Tensor,\n    n: int=1) -> Tensor", &["return torch.add(x, y)"])?;
    let refused = pair.expect_err("one input is missing");
    assert!(refused.contains("the manifest has 1 inputs, the model's forward takes 2: x, y"), "{refused}");
    Ok(())
}

#[test]
fn outputs_are_plain_and_right_whatever_their_form() -> Result<()> {
    let forms: &[(&str, &[&str])] = &[
        ("transposed", &["return torch.t(torch.contiguous(torch.t(torch.mul(x, 2.))))"]),
        ("negated", &["return torch._neg_view(torch.mul(x, -2.))"]),
        ("conjugated", &["z = torch.complex(x, torch.mul(x, -2.))", "return torch.imag(torch.conj(z))"]),
        ("sparse", &["return torch.to_sparse(torch.mul(x, 2.))"]),
        ("csr", &["return torch.to_sparse_csr(torch.mul(x, 2.))"]),
        ("mkldnn", &["return torch.to_mkldnn(torch.mul(x, 2.))"]),
        ("quantised", &["return torch.quantize_per_tensor(torch.mul(x, 2.), 0.5, 0, 13)"]),
        ("flipped", &["return torch.flip(torch.flip(torch.mul(x, 2.), [1]), [1])"]),
        ("sliced", &["return torch.slice(torch.cat([x, torch.mul(x, 2.)], 1), 1, 4, 8)"]),
        (
            "on-a-gpu",
            &[
                "return torch.add(torch.mul(x, 2.), torch.zeros([4], dtype=6, layout=None, device=torch.device(\"cuda:0\")))",
            ],
        ),
    ];
    let mut stack = Stack::start(Kind::Nats)?;
    let mut packages = Vec::new();
    for (name, body) in forms {
        let manifest = FOUR.replace("\"m\"", &format!("\"{name}\""));
        let script = Script { signature: "x: Tensor) -> Tensor", body, manifest: &manifest };
        packages.push(script.write(stack.folder(), name)?);
    }
    let slots: Vec<(&Path, usize)> = packages.iter().map(|package| (package.as_path(), 1)).collect();
    let _worker = stack.worker(&slots, "")?;
    for (name, _) in forms {
        let output = stack.cli(&["infer", name, "--input", "x=[[1,2,3,4],[5,6,7,8]]"])?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)
            .map_err(|_| anyhow::anyhow!("`{name}`: {}", String::from_utf8_lossy(&output.stderr)))?;
        let expected = serde_json::json!([2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0]);
        assert_eq!(answer["outputs"][0]["data"], expected, "`{name}`");
    }
    Ok(())
}

#[test]
fn outputs_without_values_or_rows_are_refused_by_name() -> Result<()> {
    let forms: &[(&str, &[&str])] = &[
        ("it is on the meta device", &["return torch.to(x, torch.device(\"meta\"))"]),
        ("the model gives FP32 [0, 4] for 1 rows", &["return torch.slice(x, 0, 0, 0)"]),
        ("the model gives FP32 [] for 1 rows", &["return torch.sum(x)"]),
        ("the model gives FP64 [1, 4] for 1 rows", &["return torch.to(x, 7)"]),
    ];
    for (expected, body) in forms {
        let said = of(body, &[])?.expect_err("it is refused");
        assert!(said.contains("output `y`") && said.contains(expected), "{said}");
    }
    Ok(())
}

#[test]
fn a_model_whose_code_reaches_outside_is_not_loaded() -> Result<()> {
    // In a branch that no check comes to, and by a name that is not the operator's own.
    let body = [
        "y = x",
        "if torch.gt(torch.size(x, 0), 100000):",
        "  t = torch",
        "  y = torch.to(t.from_file(\"/etc/hostname\", False, 4, dtype=0), 6)",
        "else:",
        "  pass",
        "return y",
    ];
    let said = of(&body, &[])?.expect_err("it is refused");
    assert!(said.contains("the model's code uses the operator `aten::from_file`"), "{said}");
    assert!(said.contains("worker.allow_operators = [\"aten::from_file\"]"), "{said}");
    let folder = tempfile::tempdir()?;
    let script = Script { signature: "x: Tensor) -> Tensor", body: &body, manifest: FOUR };
    let package = script.write(folder.path(), "m")?;
    let mut allowed = Command::new(binaries::path("sluice-worker")?);
    allowed.arg("check").arg(&package).args(["--largest", "1", "--allow-operator", "aten::from_file"]);
    let output = allowed.output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn what_a_model_prints_does_not_get_into_the_report() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let body = ["print(\"hello from the model\")", "return torch.mul(x, 2)"];
    let script = Script { signature: "x: Tensor) -> Tensor", body: &body, manifest: FOUR };
    let package = script.write(folder.path(), "m")?;
    let worker = binaries::path("sluice-worker")?;
    let output = Command::new(worker).arg("check").arg(&package).args(["--largest", "1", "--json"]).output()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["model"], "m");
    Ok(())
}

#[tokio::test]
async fn slots_do_not_share_what_a_model_writes() -> Result<()> {
    let mut stack = Stack::start(Kind::Nats)?;
    // Between writing and reading there is time for another slot to write.
    let body = [
        "self.h = x",
        "kept = self.kept",
        "_0 = torch.copy_(kept, torch.select(x, 0, 0))",
        "w = torch.ones([64, 64])",
        "y = w",
        "for _1 in range(40):",
        "  y = torch.clamp(torch.mm(y, w), 0., 1.)",
        "z = torch.mul(torch.min(y), 0.)",
        "return torch.add(torch.add(self.h, kept), z)",
    ];
    let manifest = format!("{FOUR}[batching]\nmax_rows = 1\n");
    let script = Script { signature: "x: Tensor) -> Tensor", body: &body, manifest: &manifest };
    let kept = [("h", Attribute::Buffer([0.0; 4])), ("kept", Attribute::Buffer([0.0; 4]))];
    let package = script.write_with(stack.folder(), "m", &kept)?;
    let mut worker = stack.worker(&[(&package, 3)], "")?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    const REQUESTS: usize = 600;
    for index in 0..REQUESTS {
        let request = envelope(&format!("r{index}"), &*inbox);
        submit(&broker, Submission::new("m".parse()?, request, rows(&[[index as f32; 4]]))).await?;
    }
    let mut wrong = 0;
    for _ in 0..REQUESTS {
        let reply = next(&mut inbox).await?;
        let asked: f32 = reply.id.as_str()[1..].parse()?;
        wrong += usize::from(floats(&reply) != Ok(vec![2.0 * asked; 4]));
    }
    assert_eq!(wrong, 0, "answers hold values of other requests");
    assert!(worker.process.ended().is_none(), "{}", worker.process.log());
    Ok(())
}
