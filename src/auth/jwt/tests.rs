//! Keys and tokens against those of other programs: the vectors of RFC 7515, RFC 7517 and RFC 8037, and keys of openssl.

use super::keys::{self, Key};
use super::token::{Expected, Parts, Token};
use crate::clock::Time;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::{Value, json};

/// 2026-01-01.
const NOW: u64 = 1_767_225_600;
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn expected() -> Expected {
    Expected { user_claim: "sub".to_owned(), audience: None, issuer: None, skew_ms: 30_000 }
}

fn encoded(header: &Value, claims: &Value) -> String {
    let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
    format!("{}.{}", part(header), part(claims))
}

fn signed(header: &Value, claims: &Value) -> String {
    let text = encoded(header, claims);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag))
}

fn verify(token: &str, keys: &[Key], expected: &Expected) -> Result<Token, String> {
    Parts::of(token).ok_or("no token")?.verify(keys, expected, Time(NOW * 1000))
}

#[test]
fn what_a_token_says_decides_and_the_reason_is_named() {
    let keys = keys::of_key_file(SECRET).unwrap();
    let hs = json!({"alg": "HS256", "typ": "JWT"});
    let good = json!({"sub": "alice", "exp": NOW + 60});
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let without = |name: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(name);
        claims
    };
    let strict = Expected { audience: Some("mqtt".into()), issuer: Some("me".into()), ..expected() };
    let cases = [
        (hs.clone(), good.clone(), &expected(), Ok("alice")),
        (hs.clone(), with("exp", json!(NOW - 29)), &expected(), Ok("alice")),
        (hs.clone(), with("exp", json!(NOW as f64 + 0.5)), &expected(), Ok("alice")),
        (hs.clone(), with("exp", json!(NOW - 30)), &expected(), Err("expired")),
        (hs.clone(), with("exp", json!("tomorrow")), &expected(), Err("exp is no time")),
        (hs.clone(), with("exp", json!(-1)), &expected(), Err("exp is no time")),
        (hs.clone(), without("exp"), &expected(), Err("no exp")),
        (hs.clone(), with("nbf", json!(NOW + 30)), &expected(), Ok("alice")),
        (hs.clone(), with("nbf", json!(NOW + 31)), &expected(), Err("nbf")),
        (hs.clone(), without("sub"), &expected(), Err("no user")),
        (hs.clone(), with("sub", json!(7)), &expected(), Err("no user")),
        (hs.clone(), with("sub", json!("a\nb")), &expected(), Err("no user")),
        (hs.clone(), with("groups", json!("ops")), &expected(), Err("groups is no list")),
        (hs.clone(), with("acl", json!({"publish": [1]})), &expected(), Err("acl.publish")),
        (hs.clone(), with("acl", json!([])), &expected(), Err("acl is no object")),
        // It would match as `a/#` does.
        (hs.clone(), with("acl", json!({"publish": ["a/#/b"]})), &expected(), Err("acl.publish")),
        (hs.clone(), with("acl", json!({"subscribe": ["b", ""]})), &expected(), Err("acl.subscribe")),
        (hs.clone(), good.clone(), &strict, Err("issuer")),
        (hs.clone(), with("iss", json!("me")), &strict, Err("audience")),
        (
            hs.clone(),
            json!({"sub": "x", "exp": NOW + 1, "iss": "me", "aud": ["a", "mqtt"]}),
            &strict,
            Ok("x"),
        ),
        (hs.clone(), json!({"sub": "x", "exp": NOW + 1, "iss": "me", "aud": "mqtt"}), &strict, Ok("x")),
        (
            hs.clone(),
            json!({"sub": "x", "exp": NOW + 1, "iss": "me", "aud": "mqtt2"}),
            &strict,
            Err("audience"),
        ),
        (json!({"alg": "none"}), good.clone(), &expected(), Err("algorithm")),
        (json!({"alg": "RS256"}), good.clone(), &expected(), Err("algorithm")),
        (json!({"alg": "HS512"}), good.clone(), &expected(), Err("algorithm")),
        (json!({"alg": "HS256", "crit": ["b64"]}), good.clone(), &expected(), Err("crit")),
        // A key without a name may be any.
        (json!({"alg": "HS256", "kid": "1"}), good.clone(), &expected(), Ok("alice")),
    ];
    for (header, claims, expected, outcome) in cases {
        let found = verify(&signed(&header, &claims), &keys, expected);
        match outcome {
            Ok(user) => assert_eq!(&*found.unwrap().user, user, "{header} {claims}"),
            Err(why) => {
                let error = found.unwrap_err();
                assert!(error.contains(why), "{header} {claims}: {error}");
                assert!(!error.contains("alice"), "{error}");
            }
        }
    }
    let token = signed(&hs, &good);
    let (text, signature) = token.rsplit_once('.').unwrap();
    for wrong in [
        format!("{text}."),
        format!("{text}.AAAA"),
        format!("{}.{signature}", encoded(&hs, &with("sub", json!("bob")))),
    ] {
        assert_eq!(verify(&wrong, &keys, &expected()).unwrap_err(), "its signature is wrong");
    }
    for none in ["", "a.b", "a.b.c.d", "password", "....", "eyJhbGciOiJIUzI1NiJ9", &format!("{token}.x")] {
        assert!(Parts::of(none).is_none(), "{none}");
    }
    let all =
        json!({"sub": "a", "exp": NOW + 9, "groups": ["g"], "acl": {"publish": ["a/#"], "subscribe": []}});
    let token = verify(&signed(&hs, &all), &keys, &expected()).unwrap();
    let claims = token.claims.unwrap();
    assert_eq!((token.groups, token.expires_at), (vec!["g".into()], Time((NOW + 9 + 30) * 1000)));
    assert_eq!((claims.publish, claims.subscribe), (Some(vec!["a/#".into()]), Some(vec![])));
}

/// RFC 8037 appendix A.4: an Ed25519 key and what it signed.
#[test]
fn keys_of_the_rfcs_verify_what_they_signed() {
    let set = json!({"keys": [
        {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty": "EC", "crv": "P-256", "kid": "ec", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
         "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
        {"kty": "RSA", "kid": "rsa", "e": "AQAB", "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"},
        {"kty": "EC", "crv": "P-384", "kid": "other", "x": "AA", "y": "AA"},
        {"kty": "RSA", "kid": "enc", "use": "enc", "n": "AA", "e": "AQAB"},
    ]});
    let keys = keys::of_set(set.to_string().as_bytes()).unwrap();
    let by = |kid: &str| keys.iter().find(|k| k.kid.as_deref() == Some(kid)).unwrap();
    assert_eq!(keys.iter().map(Key::algorithm).collect::<Vec<_>>(), ["EdDSA", "ES256", "RS256"]);
    let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let claims =
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    for (kid, text, signature) in [
        (
            "ed",
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc".to_owned(),
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        ),
        (
            "ec",
            format!("eyJhbGciOiJFUzI1NiJ9.{claims}"),
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
        (
            "rsa",
            format!("eyJhbGciOiJSUzI1NiJ9.{claims}"),
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        ),
    ] {
        assert!(by(kid).verifies(text.as_bytes(), &bytes(signature)), "{kid}");
        assert!(!by(kid).verifies(format!("{text}x").as_bytes(), &bytes(signature)), "{kid}");
        let others = keys.iter().filter(|k| k.kid.as_deref() != Some(kid));
        assert!(others.into_iter().all(|k| !k.verifies(text.as_bytes(), &bytes(signature))), "{kid}");
    }
}

#[test]
fn a_token_is_verified_by_the_key_that_it_names() {
    let k = |secret: &[u8]| URL_SAFE_NO_PAD.encode(secret);
    let set = json!({"keys": [
        {"kty": "oct", "kid": "a", "k": k(b"another secret of thirty-two bytes")},
        {"kty": "oct", "kid": "b", "k": k(SECRET)},
    ]});
    let keys = keys::of_set(set.to_string().as_bytes()).unwrap();
    assert!(keys::has_secret(set.to_string().as_bytes()));
    let claims = json!({"sub": "alice", "exp": NOW + 60});
    for (header, outcome) in [
        (json!({"alg": "HS256", "kid": "b"}), Ok(())),
        (json!({"alg": "HS256"}), Ok(())),
        (json!({"alg": "HS256", "kid": "a"}), Err("its signature is wrong")),
        (json!({"alg": "HS256", "kid": "c"}), Err("no key has the name that it gives (kid)")),
    ] {
        let found = verify(&signed(&header, &claims), &keys, &expected());
        assert_eq!(found.map(|_| ()).map_err(|e| e.to_string()), outcome.map_err(str::to_owned), "{header}");
    }
}

#[test]
fn files_without_a_usable_key_are_refused_and_not_repeated() {
    let private = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
    for (content, why) in [
        ("hunter2", "at least 32 bytes, and this one 7"),
        (private, "private key"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "cannot be read"),
        ("-----BEGIN NOTHING-----\n", ""),
    ] {
        let error = keys::of_key_file(content.as_bytes()).unwrap_err();
        assert!(error.contains(why) && !error.contains("hunter2") && !error.contains("MC4CAQ"), "{error}");
    }
    for (set, why) in [
        ("{", "not a JSON Web Key Set: line 1"),
        ("{\"keys\":[]}", "no key"),
        ("{\"keys\":[{\"kty\":\"oct\",\"k\":\"aHVudGVyMg\"}]}", "key 1: a shared secret has at least"),
        ("{\"keys\":[{\"kty\":\"RSA\",\"n\":\"AQ\"}]}", "key 1: it has no e"),
    ] {
        let error = keys::of_set(set.as_bytes()).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

/// Whoever knows a public key that is taken for a shared secret makes tokens as he likes (RFC 8725 section 2.1).
#[test]
fn a_public_key_in_any_form_is_no_shared_secret() {
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
    for before in ["", "\n", "  ", "# of the issuer\n", "Bag Attributes\n    friendlyName: x\n"] {
        let content = format!("{before}{PUBLIC}");
        assert!(!keys::is_secret(content.as_bytes()), "{before:?}");
        if let Ok(keys) = keys::of_key_file(content.as_bytes()) {
            assert_eq!(keys.iter().map(Key::algorithm).collect::<Vec<_>>(), ["EdDSA"], "{before:?}");
        }
    }
    let wide: Vec<u8> = PUBLIC.bytes().flat_map(|b| [b, 0]).collect();
    let der = base64::engine::general_purpose::STANDARD
        .decode("MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
        .unwrap();
    let set = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]});
    let openssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea issuer";
    for content in [&wide[..], &der, set.to_string().as_bytes(), openssh.as_bytes()] {
        assert!(keys::of_key_file(content).is_err(), "{:?}", String::from_utf8_lossy(content));
    }
}

proptest::proptest! {
    /// Whatever stands where a token or a file of keys should, it is read or refused.
    #[test]
    fn no_token_and_no_key_makes_a_reader_panic(
        noise in proptest::collection::vec(proptest::num::u8::ANY, 0..60),
        at in 0_usize..400,
        instead in 0_usize..8,
        what in 0_usize..4,
    ) {
        let good = [
            signed(&json!({"alg": "HS256", "kid": "k"}), &json!({"sub": "alice", "exp": NOW + 60, "acl": {"publish": ["a"]}})),
            json!({"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, {"kty": "oct", "k": "AAAA"}]}).to_string(),
            "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n".to_owned(),
            String::new(),
        ];
        let good = good[what].as_bytes();
        let start = at.min(good.len());
        let bytes = [&good[..start], &noise, good.get(start + instead..).unwrap_or_default()].concat();
        let _ = (keys::of_key_file(&bytes), keys::of_set(&bytes), keys::has_secret(&bytes));
        let keys = keys::of_key_file(SECRET).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let _ = Parts::of(&text).map(|parts| parts.verify(&keys, &expected(), Time(NOW * 1000)));
    }
}
