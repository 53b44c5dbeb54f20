//! Bodies both ways, and what must be refused.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn json_body(value: serde_json::Value) -> Bytes {
    value.to_string().into()
}

fn refusal(content_type: ContentType, body: impl Into<Bytes>) -> String {
    decode_request(content_type, &body.into()).expect_err("a refusal").message
}

#[test]
fn nested_and_flat_json_data_mean_the_same() {
    let body = |data: serde_json::Value| {
        json_body(json!({ "inputs": [{ "name": "x", "datatype": "FP32", "shape": [2, 2], "data": data }], "other": 1 }))
    };
    let flat = decode_request(ContentType::Json, &body(json!([1, 2.5, 3, 4]))).expect("flat");
    let nested = decode_request(ContentType::Json, &body(json!([[1, 2.5], [3, 4]]))).expect("nested");
    assert_eq!(flat, nested);
    assert_eq!(flat.rows(), 2);
    assert_eq!(flat.inputs[0].data[4..8], 2.5_f32.to_le_bytes());
}

#[test]
fn a_msgpack_bin_is_shared_with_the_body_not_copied() {
    let data = Bytes::from(vec![7_u8; 1024]);
    let request = InferRequest {
        inputs: vec![Tensor { name: "x".into(), datatype: Datatype::Uint8, shape: vec![4, 256], data }],
        outputs: vec!["y".into()],
    };
    let body = encode_request(ContentType::MessagePack, &request);
    let decoded = decode_request(ContentType::MessagePack, &body).expect("decodes");
    assert_eq!(decoded, request);
    let whole = body.as_ptr_range();
    assert!(whole.contains(&decoded.inputs[0].data.as_ptr()), "the tensor's bytes were copied");
}

#[test]
fn what_is_wrong_is_named() {
    let one = |tensor: serde_json::Value| json_body(json!({ "inputs": [tensor] }));
    let cases = [
        (json_body(json!({})), "missing field `inputs`"),
        (json_body(json!({ "inputs": [] })), "`inputs` is empty"),
        (
            one(json!({ "name": "x", "datatype": "FP32", "shape": [1, 64], "data": [1, 2, 3] })),
            "input `x`: 3 values for shape [1, 64]",
        ),
        (
            one(json!({ "name": "x", "datatype": "FP8", "shape": [1], "data": [1] })),
            "input `x`: datatype `FP8` is none of BOOL",
        ),
        (
            one(json!({ "name": "x", "datatype": "UINT8", "shape": [2], "data": [1, 300] })),
            "input `x`: value 300 at index 1 is not UINT8",
        ),
        (
            one(json!({ "name": "x", "datatype": "INT64", "shape": [1], "data": [1.5] })),
            "input `x`: value 1.5 at index 0 is not INT64",
        ),
        (
            one(json!({ "name": "x", "datatype": "FP32", "shape": [1], "data": ["a"] })),
            "input `x`: value \"a\" at index 0 is not FP32",
        ),
        (
            one(json!({ "name": "x", "datatype": "INT64", "shape": [2], "data": [1, null] })),
            "input `x`: value null at index 1 is not INT64",
        ),
        (one(json!({ "name": "x", "datatype": "FP32", "data": [1] })), "missing field `shape`"),
        (one(json!({ "name": "x", "datatype": "FP32", "shape": [1], "data": "AAAA" })), "an array of values"),
        (Bytes::from_static(b"{\"inputs\": ["), "line 1 column"),
    ];
    for (body, expected) in cases {
        let message = refusal(ContentType::Json, body);
        assert!(message.contains(expected), "`{message}` does not contain `{expected}`");
    }
    assert!(refusal(ContentType::MessagePack, &b"\xc1"[..]).contains("MessagePack"));
    assert!(refusal(ContentType::MessagePack, &b""[..]).contains("MessagePack"));
}

#[test]
fn null_is_nan_for_a_float_and_nothing_where_outputs_may_be_left_out() {
    let body = json_body(json!({
        "inputs": [{ "name": "x", "datatype": "FP64", "shape": [2], "data": [1, null] }], "outputs": null
    }));
    let request = decode_request(ContentType::Json, &body).expect("decodes");
    assert!(f64::from_le_bytes(request.inputs[0].data[8..16].try_into().expect("8 bytes")).is_nan());
    assert!(request.outputs.is_empty());
    // As the encoder of @msgpack/msgpack writes what is undefined.
    let inputs = b"\x82\xa6inputs\x91\x84\xa4name\xa1x\xa8datatype\xa5UINT8\xa5shape\x91\x01\xa4data\xc4\x01\x07";
    let body = [&inputs[..], b"\xa7outputs\xc0"].concat();
    assert!(decode_request(ContentType::MessagePack, &body.into()).expect("decodes").outputs.is_empty());
}

#[test]
fn deep_nesting_is_refused_without_harm() {
    let deep = [vec![0x91_u8; 1_000_000], vec![1]].concat();
    assert!(
        refusal(ContentType::MessagePack, [&b"\x81\xa6inputs\x91\x81\xa4data"[..], &deep].concat()).contains("depth")
    );
    let data = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let body = format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1],"data":{data}}}]}}"#);
    assert!(refusal(ContentType::Json, body).contains("recursion"));
}

#[test]
fn a_length_that_lies_costs_no_memory() {
    // An array that claims 4 billion tensors, then ends.
    assert!(!refusal(ContentType::MessagePack, &b"\x81\xa6inputs\xdd\xff\xff\xff\xff"[..]).is_empty());
    assert!(!refusal(ContentType::MessagePack, &b"\x81\xa6inputs\x91\x81\xa4data\xc6\xff\xff\xff\xff"[..]).is_empty());
}

#[test]
fn failures_round_trip() {
    let failure = Failure::new(ErrorCode::ModelFailed, "mat1 and mat2 shapes cannot be multiplied");
    for content_type in [ContentType::Json, ContentType::MessagePack] {
        let body = encode_failure(content_type, "digits", "a", &failure);
        assert_eq!(decode_failure(content_type, &body), failure);
        assert_eq!(failed_model(content_type, &body).as_deref(), Some("digits"));
    }
}

fn any_tensor() -> impl Strategy<Value = Tensor> {
    let datatype = prop::sample::select(&Datatype::ALL[..]);
    (datatype, 1..4_i64, 1..5_i64, any::<u64>(), "[a-z]{1,8}").prop_map(|(datatype, rows, columns, seed, name)| {
        let elements = (rows * columns) as usize;
        let byte = |index: usize| (seed.rotate_left(index as u32 * 7) & 0x3f) as u8;
        let data = match datatype {
            Datatype::Bool => (0..elements).map(|index| byte(index) & 1).collect(),
            Datatype::Bytes => (0..elements).flat_map(|index| [2, 0, 0, 0, 65 + (byte(index) & 15), 66]).collect(),
            _ => (0..elements * datatype.size().unwrap_or(0)).map(byte).collect::<Vec<u8>>(),
        };
        Tensor { name, datatype, shape: vec![rows, columns], data: data.into() }
    })
}

proptest! {
    #[test]
    fn every_tensor_survives_both_encodings(tensor in any_tensor()) {
        let request = InferRequest { inputs: vec![tensor], outputs: vec![] };
        for content_type in [ContentType::MessagePack, ContentType::Json] {
            let body = encode_request(content_type, &request);
            prop_assert_eq!(&decode_request(content_type, &body).expect("decodes"), &request);
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let body = Bytes::from(bytes);
        for content_type in [ContentType::MessagePack, ContentType::Json] {
            let _ = decode_request(content_type, &body);
            let _ = decode_response(content_type, &body);
            let _ = decode_failure(content_type, &body);
        }
    }

    #[test]
    fn a_damaged_request_is_refused_or_well_formed(tensor in any_tensor(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let request = InferRequest { inputs: vec![tensor], outputs: vec![] };
        let mut bytes = encode_request(ContentType::MessagePack, &request).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = with;
        if let Ok(decoded) = decode_request(ContentType::MessagePack, &bytes.into()) {
            for tensor in &decoded.inputs {
                prop_assert!(tensor.check().is_ok());
            }
        }
    }
}
