//! `config.json` and tensor names, as Hugging Face's loaders expect them.

use dspc_program::{Program, Tokenizer};
use serde_json::{Map, Value, json};

/// The model in the words of its family; a model of the user's own in its own.
pub(super) fn config(program: &Program) -> Value {
    match program.model.architecture.as_str() {
        "gpt2" => gpt2(program),
        _ => plain(program),
    }
}

/// A parameter's name in `model.safetensors`: GPT-2's embeddings are modules there, and here they are tensors.
pub(super) fn tensor_name(program: &Program, param: &str) -> String {
    match (program.model.architecture.as_str(), param) {
        ("gpt2", "wte" | "wpe") => format!("{param}.weight"),
        _ => param.to_string(),
    }
}

fn number(program: &Program, name: &str) -> Option<f64> {
    program.model.values.get(name).copied()
}

fn whole(program: &Program, name: &str) -> Value {
    number(program, name).map_or(Value::Null, |x| json!(x as u64))
}

fn gpt2(program: &Program) -> Value {
    let dropout = number(program, "dropout").unwrap_or(0.0);
    let context = number(program, "context").map_or(program.data.sequence, |x| x as u64);
    let end = match program.data.tokenizer {
        Tokenizer::Gpt2 => json!(crate::tokenizer::GPT2_END_OF_TEXT),
        Tokenizer::Chars(_) | Tokenizer::Bytes => Value::Null,
    };
    json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": whole(program, "layers"),
        "n_head": whole(program, "heads"),
        "n_embd": whole(program, "width"),
        "n_positions": context,
        "n_ctx": context,
        "vocab_size": program.data.vocab,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "attn_pdrop": dropout,
        "embd_pdrop": dropout,
        "resid_pdrop": dropout,
        "bos_token_id": end,
        "eos_token_id": end,
        "tie_word_embeddings": true,
        "dtype": "float32",
        "torch_dtype": "float32",
    })
}

fn plain(program: &Program) -> Value {
    let mut map = Map::new();
    map.insert("model_type".into(), json!(program.model.architecture));
    for (name, &value) in &program.model.values {
        let whole = value.fract() == 0.0 && value.abs() < 9e15;
        map.insert(name.clone(), if whole { json!(value as i64) } else { json!(value) });
    }
    map.insert("vocab_size".into(), json!(program.data.vocab));
    map.insert("dtype".into(), json!("float32"));
    Value::Object(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Builder;

    fn program(architecture: &str) -> Program {
        let mut program = Builder::new().program;
        program.model.architecture = architecture.into();
        program.model.values = [("layers", 2.0), ("heads", 4.0), ("width", 64.0), ("rate", 0.5)]
            .map(|(k, v)| (k.into(), v))
            .into();
        program
    }

    #[test]
    fn gpt2_has_the_keys_of_its_family() {
        let program = program("gpt2");
        let config = config(&program);
        for (key, value) in
            [("n_layer", 2), ("n_head", 4), ("n_embd", 64), ("n_positions", 4), ("vocab_size", 256)]
        {
            assert_eq!(config[key], value, "{key}");
        }
        assert_eq!(config["architectures"][0], "GPT2LMHeadModel");
        assert_eq!(tensor_name(&program, "wte"), "wte.weight");
        assert_eq!(tensor_name(&program, "h.0.ln_1.weight"), "h.0.ln_1.weight");
    }

    #[test]
    fn another_model_keeps_its_own_words() {
        let program = program("mine");
        assert_eq!(
            config(&program).to_string(),
            r#"{"dtype":"float32","heads":4,"layers":2,"model_type":"mine","rate":0.5,"vocab_size":256,"width":64}"#
        );
        assert_eq!(tensor_name(&program, "wte"), "wte");
    }
}
