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
fn more_tensors_than_any_model_has_are_refused_and_not_read() {
    let tensor = |index| json!({ "name": format!("{index:05x}"), "datatype": "BOOL", "shape": [1], "data": [true] });
    let many: Vec<_> = (0..60_000).map(tensor).collect();
    let named: Vec<_> = (0..60_000).map(|_| json!({ "name": "y" })).collect();
    for body in [json!({ "inputs": many }), json!({ "inputs": [tensor(0)], "outputs": named })] {
        let began = std::time::Instant::now();
        let packed = rmp_serde::to_vec_named(&body).expect("encodes");
        assert!(refusal(ContentType::MessagePack, packed).contains("more than 1024 elements"));
        assert!(refusal(ContentType::Json, json_body(body)).contains("more than 1024 elements"));
        assert!(began.elapsed() < std::time::Duration::from_secs(5), "it took {:?}", began.elapsed());
    }
    let deep = json!({ "inputs": [{ "name": "x", "datatype": "BOOL", "shape": vec![1; 50_000], "data": [true] }] });
    assert!(refusal(ContentType::Json, json_body(deep)).contains("more than 64 elements"));
    let twice: Vec<_> = (0..1000).chain([7]).map(tensor).collect();
    assert_eq!(refusal(ContentType::Json, json_body(json!({ "inputs": twice }))), "input `00007` is given twice");
}

#[test]
fn fields_are_named_and_no_refusal_repeats_the_body() {
    let unnamed = rmp_serde::to_vec(&([("x", "BOOL", [1], [true])],)).expect("encodes");
    assert!(refusal(ContentType::MessagePack, unnamed).contains("a map"));
    let long = "x".repeat(100_000);
    for body in [
        json!({ "inputs": long }),
        json!({ "inputs": [{ "name": "x", "datatype": long, "shape": [1], "data": [1] }] }),
        json!({ "inputs": [{ "name": long, "datatype": "FP32", "shape": [1], "data": [true] }] }),
        json!({ "inputs": [{ "name": "x", "datatype": "FP32", "shape": vec![1; 50_000], "data": [1] }] }),
        json!({ "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, i64::MAX, i64::MAX], "data": [1] }] }),
    ] {
        let message = refusal(ContentType::Json, json_body(body));
        assert!(message.len() < 600, "{} bytes: {message}", message.len());
    }
}

#[test]
fn a_length_that_lies_costs_no_memory() {
    // An array that claims 4 billion tensors, then ends.
    assert!(!refusal(ContentType::MessagePack, &b"\x81\xa6inputs\xdd\xff\xff\xff\xff"[..]).is_empty());
    assert!(!refusal(ContentType::MessagePack, &b"\x81\xa6inputs\x91\x81\xa4data\xc6\xff\xff\xff\xff"[..]).is_empty());
}

#[test]
fn encoding_ends_at_what_can_be_sent() {
    let data = Bytes::from(vec![0_u8; 4_000_000]);
    let output = Tensor { name: "y".into(), datatype: Datatype::Fp32, shape: vec![1_000_000, 1], data };
    let outputs = vec![output; 100];
    let response =
        InferResponse { model_name: "m".into(), model_version: "1".into(), id: "r1".into(), outputs: outputs.clone() };
    let request = InferRequest { inputs: outputs, outputs: vec![] };
    let began = std::time::Instant::now();
    for content_type in [ContentType::MessagePack, ContentType::Json] {
        let Oversize(at) = encode_response_within(1_000_000, content_type, &response).expect_err("too large");
        assert!(at > 1_000_000);
        assert!(encode_request_within(1_000_000, content_type, &request).is_err());
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "it took {:?}", began.elapsed());
    let small = InferResponse { outputs: vec![], ..response };
    let text = encode_response_within(1000, ContentType::Json, &small).expect("fits");
    assert_eq!(&text[..], br#"{"id":"r1","model_name":"m","model_version":"1","outputs":[]}"#);
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
