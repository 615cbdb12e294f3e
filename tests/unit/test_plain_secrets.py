"""A secret that is written out is known by its form and by the name before it."""

import re
import time

import pytest

from requant.config.plain_secrets import is_harmless, text_fault
from requant.config.secret_arguments import argument_fault, secret_word

VALUE = "hunter2hunter2"
TOKENS = [
    "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "github_pat_11ABCDEFG0abcdefghij_klmnop",
    "glpat-abcdefghij1234567890",
    "sk-abcdefghijklmnop1234",
    "sk-ant-api03-abcdefghijkl",
    "sk_live_abcdefghij",
    "xoxb-1234567890-abcdef",
    "AKIAIOSFODNN7EXAMPLE",
    "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "dckr_pat_abcdefghijkl",
    "hvs.abcdefghijklmnopqr",
    "SG.abcdefghijklmnopqrstuv.abcdefghijklmnop",
    "ya29.a0AfH6SMBabcdefghijk",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc",
    "-----BEGIN OPENSSH PRIVATE KEY-----\nabc",
]
WRITTEN_OUT: list[tuple[list[str], str]] = [
    (["--token", VALUE], "item 3 of 3 follows an option that says token"),
    (["-token", VALUE], "follows an option that says token"),
    (["--hf-token", VALUE], "follows an option that says token"),
    (["--api-key", VALUE], "follows an option that says api key"),
    (["--aws-secret-access-key", VALUE], "follows an option that says access key"),
    (["--secret-string", VALUE], "follows an option that says secret"),
    (["--pass", VALUE], "follows an option that says pass"),
    ([f"--password={VALUE}"], "item 2 of 2 gives a value to a name that says password"),
    ([f"PGPASSWORD={VALUE}"], "a name that says password"),
    ([f"--token=$(cat x){VALUE}"], "a name that says token"),
    ([f"--token=$(cat x){VALUE}$(cat y)"], "a name that says token"),
    ([f"--token=`cat x`{VALUE}`cat y`"], "a name that says token"),
    (["-c", f"TOKEN=$(cat x){VALUE} ./deploy.sh"], "a name that says token"),
    (["-c", f'TOKEN="$(cat x | cut -d: -f1){VALUE}" ./deploy.sh'], "a name that says token"),
    ([f"TOKEN+={VALUE}"], "a name that says token"),
    (["-c", f"TOKEN+='{VALUE}'; ./deploy.sh"], "a name that says token"),
    (["--secret-key-base64", VALUE], "follows an option that says secret key"),
    (["--token-b64", VALUE], "follows an option that says token"),
    ([f"//me:{VALUE}@serve.example/x"], "holds an address with a password"),
    ([f"--to=//me:{VALUE}@serve.example/x"], "holds an address with a password"),
    (["--set", f"auth.password={VALUE}"], "a name that says password"),
    (["--set=a=b", f"-e=x=MY_TOKEN={VALUE}"], "a name that says token"),
    (["-H", f"Authorization: Bearer {VALUE}"], "a name that says authorization"),
    (["-H", f"X-Api-Key: {VALUE}"], "a name that says api key"),
    (["-H", f"Cookie: session={VALUE}"], "a name that says cookie"),
    (["-d", f'{{"token": "{VALUE}"}}'], "a name that says token"),
    (["-d", f"{{'token': '{VALUE}'}}"], "a name that says token"),
    (["-c", f"import x; x.login(password='{VALUE}')"], "a name that says password"),
    (["-d", '{"password": 12345678}'], "a name that says password"),
    ([f"--password={VALUE}("], "a name that says password"),
    (["-d", f"Bearer {VALUE}"], "holds a bearer token"),
    (["-c", f"curl -H 'Authorization: Bearer {VALUE}' https://x"], "a name that says author"),
    (["-c", f"./deploy.sh --api-key {VALUE} now"], "follows an option that says api key"),
    (["-c", f"./deploy.sh 'unclosed --api-key {VALUE} now"], "follows an option that says api"),
    (["-u", f"me:{VALUE}"], "holds a user and a password"),
    ([f"--user=me:{VALUE}"], "holds a user and a password"),
    ([f"-ume:{VALUE}"], "holds a user and a password"),
    (["docker", "run", "-u", "me:me", "image", "-u", f"me:{VALUE}"], "holds a user and a pass"),
    (["docker", "run", "image", "curl", "-u", f"me:{VALUE}"], "holds a user and a password"),
    (["docker", "--password", "me:me", "-u", "me:other"], "follows an option that says password"),
    (["-H", "Cookie: id=hunter2"], "a name that says cookie"),
    ([f"--token=${{TOKEN:-{VALUE}}}"], "a name that says token"),
    ([f"--x=${{TOKEN:-{VALUE}}}"], "a name that says token"),
    ([f"https://me:{VALUE}@serve.example"], "holds an address with a password"),
    ([f"--to=https://{VALUE}@serve.example/x"], "an address with a user or a password"),
    ([f"postgresql://me:{VALUE}@db/x"], "holds an address with a password"),
    ([f"https://serve.example/x?key={VALUE}"], r"holds an address with a query \(\?...\)"),
    ([f"https://serve.example/x?{VALUE}"], "holds an address with a query"),
    ([f"https://serve.example/#{VALUE}"], r"holds an address with a fragment \(#...\)"),
]
HARMLESS: list[list[str]] = [
    ["now", "--verbose", "--port", "8080", "-u", "1000:1000"],
    ["--token", "env:TOKEN"],
    ["--token", "$TOKEN"],
    ["--token=${TOKEN}", "--password=${PW:?missing}"],
    ["--token", "<token>", "--api-key", "{{ api_key }}", "--secret", "***"],
    ["--token-file", "/run/secrets/token", "--token", "/run/secrets/token"],
    ["--password-stdin", "--password", "--verbose"],
    ["--max-tokens", "16", "--eos-token", "</s>", "--pad-token", "<pad>", "--tokenizer", "x"],
    ["--no-password", "--key", "name", "--monkey", "b", "--secrets", "x"],
    ["-c", 'curl -H "Authorization: Bearer $TOKEN" https://serve.example/reload'],
    ["-c", "curl https://serve.example/x?model=$REQUANT_MODEL&version=${REQUANT_VERSION}"],
    ["-c", 'psql "postgresql://me:$PGPASSWORD@db/x"'],
    ["-c", "TOKEN=$(cat /run/secrets/token) ./deploy.sh"],
    ["-c", "import x; token = x.read(); print(json.dumps({'token': token})); f(token=token)"],
    ["-c", "import os; token = os.environ['TOKEN']; print(token)"],
    ["-c", 'TOKEN="$(cat /run/secrets/token | tr -d :)" ./deploy.sh', "--token=$(cat x)$(cat y)"],
    ["-c", "TOKEN=$(f $(cat a) b) x", "TOKEN+=$MORE", "--image-base64", "x", "SG.1", "a//b:c@d"],
    ["ssh://git@host/repository", "git@host:repository", "image:tag@sha256:0123456789abcdef"],
    ["https://serve.example:8443/a/b", "s3://bucket/path", "host:8080", "sk-learn-model-2024"],
    ["-u", "https://serve.example"],
    ["-c", "docker run -u vllm:vllm image && podman run --user=nobody:nogroup image"],
    ["/usr/bin/docker", "build", "--secret", "id=hf,env=HF_TOKEN", "--secret=id=a,src=/run/a"],
    ["--set", "auth.existingSecret=serve-keys", "--set", "imagePullSecret=registry"],
    ["--credentials", "serve.json", "--private-key", "keys/deploy.pem", "--cookie", "jar.txt"],
    ["-c", "echo the bearer of news; TOKEN=${TOKEN:-}; PASSWORD=${PASSWORD-}"],
    ["-c", ": ${TOKEN:?is missing}; exec ./serve.sh"],
    [
        "/models/hf_Llama3InstructNightly",
        "hf_transfer",
        "glove-embedding-v2-300d",
        "0123456789abcdef0123456789abcdef01234567",
    ],
]


@pytest.mark.parametrize("token", TOKENS, ids=lambda token: token[:9])
def test_tokens_of_known_forms(token: str) -> None:
    for text in (token, f"--x={token}", f"say '{token}' to it"):
        fault = text_fault(text)
        assert fault is not None
        assert fault.startswith("holds a token ")
        assert token[4:] not in fault


@pytest.mark.parametrize(("arguments", "said"), WRITTEN_OUT)
def test_arguments_that_hold_a_secret(arguments: list[str], said: str) -> None:
    fault = argument_fault(["./deploy.sh", *arguments])
    assert fault is not None
    assert "hunter" not in fault
    assert re.search(said, fault), fault


@pytest.mark.parametrize("arguments", HARMLESS)
def test_arguments_that_hold_none(arguments: list[str]) -> None:
    assert argument_fault(["./deploy.sh", *arguments]) is None


def test_the_program_itself_may_be_a_line_with_a_secret() -> None:
    said = argument_fault([f"deploy.sh --token {VALUE}"])
    assert said == "item 1 of 1 follows an option that says token"


def test_which_names_say_secret() -> None:
    assert secret_word("npm.authToken") == "token"
    assert secret_word("MYSQL_PWD") == "pwd"
    assert secret_word("signing-key") == "signing key"
    for name in ("tokens", "key", "public-key", "passage", "bypass", "", "-"):
        assert secret_word(name) is None
    assert not is_harmless("hunter2")


def test_long_arguments_take_no_long() -> None:
    started = time.process_time()
    for text in (
        "a=" * 200_000,
        "$(" * 5000,
        "token=$(" * 1250,
        "//" * 5000,
        "//a:" * 2500,
        "a-" * 5000,
        "a=" * 5000,
        '"' * 10_000,
        "a:// " * 2000,
        "token=" * 1600,
        "-" * 9999,
    ):
        argument_fault(["x", text, text])
    assert time.process_time() - started < 5
