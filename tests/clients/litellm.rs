//! The LiteLLM proxy with its own Opik logger. The Opik SDK is not installed beside it, so that the logger talks to the
//! server itself: it adds `/v1/...` to a base URL that ends in a slash.

use crate::install::python;
use crate::scenario::{Client, is_as_without_an_agent};

#[test]
fn the_litellm_proxy_with_its_own_logger() {
    let bin = python("litellm");
    let client = Client::script(bin.join("python"), "litellm_proxy.py").volatile(&["created"]);
    is_as_without_an_agent(&client);
}
