//! The words of a dialogue: tokens, properties, payloads and reasons, from text and to it.

use berth::mqtt::{Property, Reason};

/// Splits a line at white space outside of double quotes, which are dropped.
pub fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = None::<String>;
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// `30s`, `1500ms`, `2m`, `1h`, `3d` in milliseconds.
pub fn millis(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        other => return Err(format!("unknown unit {other:?} of {text:?}")),
    };
    Ok(number::<u64>(digits)? * unit)
}

/// A number, decimal or `0x…`.
pub fn number<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let n = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    n.ok().and_then(|n| T::try_from(n).ok()).ok_or_else(|| format!("{text:?} is no number that fits"))
}

/// `hex:00ff`, `5*x` or the text itself.
pub fn bytes(text: &str) -> Result<Vec<u8>, String> {
    if let Some(digits) = text.strip_prefix("hex:") {
        return hex(digits);
    }
    if let Some((n, what)) = text.split_once('*')
        && let Ok(n) = n.parse()
    {
        return Ok(what.repeat(n).into_bytes());
    }
    Ok(text.as_bytes().to_vec())
}

/// The opposite of [`bytes`].
pub fn show_bytes(bytes: &[u8]) -> String {
    if bytes.len() > 40 && bytes.iter().all(|b| b.is_ascii_alphanumeric() && *b == bytes[0]) {
        return format!("{}*{}", bytes.len(), char::from(bytes[0]));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(|c| !c.is_control() && c != '"') => show_text(text),
        _ => format!("hex:{}", show_hex(bytes)),
    }
}

/// Text, quoted if it must be.
pub fn show_text(text: &str) -> String {
    if text.is_empty() || text.contains(char::is_whitespace) {
        format!("\"{text}\"")
    } else {
        text.to_owned()
    }
}

/// Bytes from pairs of hexadecimal digits.
pub fn hex(digits: &str) -> Result<Vec<u8>, String> {
    let pair = |i: usize| digits.get(i..i + 2).and_then(|p| u8::from_str_radix(p, 16).ok());
    let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(pair).collect();
    bytes.ok_or_else(|| format!("{digits:?} is not hexadecimal"))
}

/// The opposite of [`hex`].
pub fn show_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A reason by its name in the specification, or by its code.
pub fn reason(text: &str) -> Result<Reason, String> {
    let by_code = || text.starts_with("0x").then(|| number(text).ok()).flatten().and_then(Reason::from_code);
    let by_name = || Reason::ALL.into_iter().find(|r| format!("{r:?}") == text);
    by_code().or_else(by_name).ok_or_else(|| format!("unknown reason {text:?}"))
}

/// Keeps the bytes that a [`Property`] borrows.
pub struct Value {
    text: String,
    second: String,
    bytes: Vec<u8>,
}

impl Value {
    pub fn new(value: &str) -> Result<Value, String> {
        let (text, second) = value.split_once(':').unwrap_or((value, ""));
        Ok(Value { text: text.to_owned(), second: second.to_owned(), bytes: bytes(value)? })
    }

    /// The property of this name and value, if there is such a name.
    pub fn property(&self, name: &str) -> Result<Option<Property<'_>>, String> {
        use Property::*;
        let text = std::str::from_utf8(&self.bytes).unwrap_or_default();
        let flag = || number::<u8>(text).map(|n| n != 0);
        Ok(Some(match name {
            "format" => PayloadFormatIndicator(flag()?),
            "ttl" => MessageExpiryInterval(number(text)?),
            "type" => ContentType(text),
            "response" => ResponseTopic(text),
            "corr" => CorrelationData(&self.bytes),
            "subid" => SubscriptionIdentifier(number(text)?),
            "expiry" => SessionExpiryInterval(number(text)?),
            "auth_method" => AuthenticationMethod(text),
            "auth_data" => AuthenticationData(&self.bytes),
            "problem_info" => RequestProblemInformation(flag()?),
            "delay" => WillDelayInterval(number(text)?),
            "response_info" => RequestResponseInformation(flag()?),
            "why" => ReasonString(text),
            "receive_max" => ReceiveMaximum(number(text)?),
            "alias_max" => TopicAliasMaximum(number(text)?),
            "alias" => TopicAlias(number(text)?),
            "user" => UserProperty(&self.text, &self.second),
            "max_packet" => MaximumPacketSize(number(text)?),
            _ => return Ok(None),
        }))
    }
}

/// `name=value` of a property.
pub fn show_property(p: &Property<'_>) -> String {
    use Property::*;
    match *p {
        PayloadFormatIndicator(v) => format!("format={}", u8::from(v)),
        MessageExpiryInterval(v) => format!("ttl={v}"),
        ContentType(v) => format!("type={}", show_text(v)),
        ResponseTopic(v) => format!("response={}", show_text(v)),
        CorrelationData(v) => format!("corr={}", show_bytes(v)),
        SubscriptionIdentifier(v) => format!("subid={v}"),
        SessionExpiryInterval(v) => format!("expiry={v}"),
        AssignedClientIdentifier(v) => format!("assigned={v}"),
        ServerKeepAlive(v) => format!("server_keepalive={v}"),
        AuthenticationMethod(v) => format!("auth_method={v}"),
        AuthenticationData(v) => format!("auth_data={}", show_bytes(v)),
        RequestProblemInformation(v) => format!("problem_info={}", u8::from(v)),
        WillDelayInterval(v) => format!("delay={v}"),
        RequestResponseInformation(v) => format!("response_info={}", u8::from(v)),
        ResponseInformation(v) => format!("response_information={}", show_text(v)),
        ServerReference(v) => format!("server_ref={v}"),
        ReasonString(v) => format!("why={}", show_text(v)),
        ReceiveMaximum(v) => format!("receive_max={v}"),
        TopicAliasMaximum(v) => format!("alias_max={v}"),
        TopicAlias(v) => format!("alias={v}"),
        MaximumQoS(v) => format!("max_qos={v}"),
        RetainAvailable(v) => format!("retain_available={}", u8::from(v)),
        UserProperty(name, value) => format!("user={}", show_text(&format!("{name}:{value}"))),
        MaximumPacketSize(v) => format!("max_packet={v}"),
        WildcardSubscriptionAvailable(v) => format!("wildcards={}", u8::from(v)),
        SubscriptionIdentifierAvailable(v) => format!("subids={}", u8::from(v)),
        SharedSubscriptionAvailable(v) => format!("shared={}", u8::from(v)),
    }
}
