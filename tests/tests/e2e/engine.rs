//! What models may look like, through a worker process.

use anyhow::Result;
use sluice_core::broker::Submission;
use sluice_core::codec::{self, ContentType};
use sluice_core::{Datatype, InferRequest, InferResponse, Tensor};
use sluice_e2e::Stack;
use sluice_e2e::fixture::Script;
use sluice_e2e::stack::{SOON, envelope, next};
use xtask::broker::Kind;

fn tensor(name: &str, datatype: Datatype, shape: &[i64], data: Vec<u8>) -> Tensor {
    Tensor { name: name.into(), datatype, shape: shape.into(), data: data.into() }
}

fn single(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Asks a package once.
async fn ask(script: &Script<'_>, requests: Vec<Vec<Tensor>>) -> Result<Vec<InferResponse<'static>>> {
    let mut stack = Stack::start(Kind::Nats)?;
    let package = script.write(stack.folder(), "m")?;
    let _worker = stack.worker(&[(&package, 1)], "")?;
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    let mut responses = Vec::new();
    for (index, inputs) in requests.into_iter().enumerate() {
        let body = codec::encode_request(ContentType::MessagePack, &InferRequest { inputs, outputs: vec![] });
        let submission = Submission::new("m".parse()?, envelope(&format!("r{index}"), &*inbox), body);
        broker.submit(submission).await?;
        let reply = next(&mut inbox).await?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        assert_eq!(reply.error, None, "{text}");
        responses.push(codec::decode_response(reply.content_type, &reply.body).map_err(anyhow::Error::from)?);
    }
    Ok(responses)
}

const ONE_IN: &str = "inputs = [{ name = \"x\", datatype = \"FP32\", shape = [-1, 2] }]\n";
const TWO_OUT: &str = "outputs = [{ name = \"double\", datatype = \"FP32\", shape = [-1, 2] }, { name = \"sum\", datatype = \"FP32\", shape = [-1] }]\n";

async fn gives_double_and_sum(signature: &str, result: &str) -> Result<()> {
    let manifest = format!("name = \"m\"\n{ONE_IN}{TWO_OUT}");
    let body = ["a = torch.mul(x, 2)", "b = torch.sum(x, [1])", result];
    let script = Script { signature, body: &body, manifest: &manifest };
    let x = tensor("x", Datatype::Fp32, &[2, 2], single(&[1.0, 2.0, 3.0, 4.0]));
    let response = ask(&script, vec![vec![x]]).await?.remove(0);
    let expected = [
        tensor("double", Datatype::Fp32, &[2, 2], single(&[2.0, 4.0, 6.0, 8.0])),
        tensor("sum", Datatype::Fp32, &[2], single(&[3.0, 7.0])),
    ];
    assert_eq!(response.outputs, expected);
    Ok(())
}

#[tokio::test]
async fn outputs_may_be_a_tuple() -> Result<()> {
    gives_double_and_sum("x: Tensor) -> Tuple[Tensor, Tensor]", "return (a, b)").await
}

#[tokio::test]
async fn outputs_may_be_a_list() -> Result<()> {
    gives_double_and_sum("x: Tensor) -> List[Tensor]", "return [a, b]").await
}

#[tokio::test]
async fn outputs_may_be_a_dict_whose_names_count() -> Result<()> {
    gives_double_and_sum("x: Tensor) -> Dict[str, Tensor]", "return {\"sum\": b, \"double\": a}").await
}

#[tokio::test]
async fn every_shared_datatype_passes_unchanged_and_several_inputs_keep_their_order() -> Result<()> {
    let datatypes = [
        Datatype::Bool,
        Datatype::Uint8,
        Datatype::Int8,
        Datatype::Int16,
        Datatype::Int32,
        Datatype::Int64,
        Datatype::Fp16,
        Datatype::Bf16,
        Datatype::Fp32,
        Datatype::Fp64,
    ];
    let names: Vec<String> = (0..datatypes.len()).map(|index| format!("t{index}")).collect();
    let specs: Vec<String> = names
        .iter()
        .zip(datatypes)
        .map(|(name, datatype)| format!("{{ name = \"{name}\", datatype = \"{datatype}\", shape = [-1, 3] }}"))
        .collect();
    let manifest = format!("name = \"m\"\ninputs = [{0}]\noutputs = [{0}]\n", specs.join(", "));
    let arguments: Vec<String> = names.iter().map(|name| format!("{name}: Tensor")).collect();
    let signature = format!("{}) -> List[Tensor]", arguments.join(",\n    "));
    let result = format!("return [{}]", names.join(", "));
    let script = Script { signature: &signature, body: &[&result], manifest: &manifest };
    let inputs: Vec<Tensor> = names
        .iter()
        .zip(datatypes)
        .enumerate()
        .map(|(index, (name, datatype))| {
            let size = datatype.size().unwrap_or(1);
            let byte =
                |at: usize| if datatype == Datatype::Bool { (at % 2) as u8 } else { (at * 7 + index) as u8 & 0x3f };
            tensor(name, datatype, &[2, 3], (0..6 * size).map(byte).collect())
        })
        .collect();
    let mut shuffled = inputs.clone();
    shuffled.reverse();
    let response = ask(&script, vec![shuffled]).await?.remove(0);
    assert_eq!(response.outputs, inputs);
    Ok(())
}

#[tokio::test]
async fn named_dimensions_are_padded_and_cut_back() -> Result<()> {
    let manifest = "name = \"m\"\ninputs = [{ name = \"ids\", datatype = \"INT64\", shape = [-1, \"tokens\"] }]\n\
        outputs = [{ name = \"next\", datatype = \"INT64\", shape = [-1, \"tokens\"] }, { name = \"width\", datatype = \"INT64\", shape = [-1] }]\n\
        [padding]\ntokens = { value = 9, multiple_of = 4 }\n";
    let body = [
        "width = torch.size(ids, 1)",
        "rows = torch.size(ids, 0)",
        "return (torch.add(ids, 1), torch.full([rows], width, dtype=4))",
    ];
    let script = Script { signature: "ids: Tensor) -> Tuple[Tensor, Tensor]", body: &body, manifest };
    let ids = |values: &[i64]| {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensor("ids", Datatype::Int64, &[1, values.len() as i64], data)
    };
    let responses = ask(&script, vec![vec![ids(&[1, 2, 3])], vec![ids(&[1, 2, 3, 4, 5])]]).await?;
    assert_eq!(responses[0].outputs[0].shape, [1, 3], "cut back to its own size");
    assert_eq!(responses[0].outputs[0].data[16..24], 4_i64.to_le_bytes());
    assert_eq!(responses[0].outputs[1].data[..8], 4_i64.to_le_bytes(), "the model saw a multiple of four");
    assert_eq!(responses[1].outputs[1].data[..8], 8_i64.to_le_bytes());
    Ok(())
}

/// What the worker says about a package that it cannot serve.
fn refusal(script: &Script<'_>) -> Result<String> {
    let mut stack = Stack::start(Kind::Nats)?;
    let package = script.write(stack.folder(), "m")?;
    let mut worker = stack.launch(&[(&package, 1)], "")?;
    let status = worker.process.wait(SOON)?;
    assert!(!status.success(), "it should not serve");
    Ok(worker.process.log())
}

#[test]
fn outputs_that_do_not_match_the_manifest_fail_at_load_with_both_shapes() -> Result<()> {
    let manifest =
        format!("name = \"m\"\n{ONE_IN}outputs = [{{ name = \"y\", datatype = \"FP32\", shape = [-1, 10] }}]\n");
    let log =
        refusal(&Script { signature: "x: Tensor) -> Tensor", body: &["return torch.mul(x, 2)"], manifest: &manifest })?;
    assert!(
        log.contains("output `y`: the manifest says FP32 [-1, 10], the model gives FP32 [1, 2] for 1 rows"),
        "{log}"
    );
    let manifest =
        format!("name = \"m\"\n{ONE_IN}outputs = [{{ name = \"y\", datatype = \"INT64\", shape = [-1, 2] }}]\n");
    let log =
        refusal(&Script { signature: "x: Tensor) -> Tensor", body: &["return torch.mul(x, 2)"], manifest: &manifest })?;
    assert!(log.contains("the manifest says INT64 [-1, 2], the model gives FP32 [1, 2]"), "{log}");
    Ok(())
}

#[test]
fn what_cannot_be_served_is_refused_by_name() -> Result<()> {
    let manifest = "name = \"m\"\ninputs = [{ name = \"text\", datatype = \"BYTES\", shape = [-1] }]\noutputs = [{ name = \"y\", datatype = \"FP32\", shape = [-1, 2] }]\n";
    let script = Script { signature: "x: Tensor) -> Tensor", body: &["return x"], manifest };
    assert!(refusal(&script)?.contains("input `text`: the torchscript engine does not support BYTES"));
    let manifest = format!("name = \"m\"\n{ONE_IN}{TWO_OUT}");
    let script = Script { signature: "x: Tensor,\n    y: Tensor) -> Tensor", body: &["return x"], manifest: &manifest };
    let log = refusal(&script)?;
    assert!(log.contains("the manifest has 1 inputs, the model's forward takes 2: x, y"), "{log}");
    let script = Script { signature: "x: Tensor) -> Tensor", body: &["return x"], manifest: &manifest };
    let log = refusal(&script)?;
    assert!(log.contains("the manifest has 2 outputs, the model returns one tensor"), "{log}");
    Ok(())
}

#[test]
fn a_cuda_device_that_is_not_there_is_an_error_that_names_it() -> Result<()> {
    let stack = Stack::start(Kind::Nats)?;
    let manifest =
        format!("name = \"m\"\n{ONE_IN}outputs = [{{ name = \"y\", datatype = \"FP32\", shape = [-1, 2] }}]\n");
    let package = Script { signature: "x: Tensor) -> Tensor", body: &["return x"], manifest: &manifest }
        .write(stack.folder(), "m")?;
    let config = stack.file(
        "cuda.toml",
        format!(
            "[broker]\nurl = \"{}\"\n[worker]\nadmin = \"127.0.0.1:0\"\n[[worker.slots]]\npackage = \"{}\"\ndevice = \"cuda:63\"\n",
            stack.server.url(),
            package.display()
        ),
    )?;
    let output =
        std::process::Command::new(sluice_e2e::binaries::path("sluice-worker")?).arg("-c").arg(config).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("device `cuda:63` is not there"), "{text}");
    println!("skipped: running a model on a CUDA device, since this test has none");
    Ok(())
}
