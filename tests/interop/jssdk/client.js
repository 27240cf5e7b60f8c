// A web client: what Element Web asks of an identity server, by the same SDK, from its own origin.
//
// The page comes from another origin than the identity server, so a call works only if the browser
// may send it (the preflight) and the page may read the answer, errors included (CORS). What the
// SDK leaves to homeservers and mail programs goes through its own `idServerRequest`.
//
// Steps follow one another and share what they learn. `report` is read by run.py.

import { AutoDiscovery, createClient, IdentityPrefix, MatrixError, Method, SERVICE_TYPES } from "matrix-js-sdk";

const STEP_TIMEOUT_MS = 30_000;
const { identityUrl, homeserver } = await (await fetch("/settings.json")).json();

function login(name) {
    return createClient({
        baseUrl: location.origin,
        idBaseUrl: identityUrl,
        userId: `@${name}:${homeserver}`,
        accessToken: name,
        deviceId: name,
        fetchFn: (url, options) => {
            const { origin, pathname: path, searchParams } = new URL(url);
            const { method, body } = options;
            if (origin === new URL(identityUrl).origin) {
                report.calls.push({ method, path, body, query: [...searchParams.keys()] });
            }
            return fetch(url, options);
        },
    });
}

const alice = login("alice");
const bob = login("bob");
const ADDRESS = "alice@example.org";
const BOBS_ADDRESS = "bob@example.org";
const ROOM = "!BpFU8wqL0vL3eQUTNkQj8WdiYmBWk8nXFJ0LpRzUNaY";
const secret = alice.generateClientSecret();
let token; // Alice's at the identity server
let bobsToken;
let sid;

// Through the SDK, to a path below /_matrix/identity/v2.
function call(method, path, parameters, accessToken = token) {
    return alice.http.idServerRequest(method, path, parameters, IdentityPrefix.V2, accessToken);
}

async function mailsTo(address) {
    return (await fetch(`/mails/${address}`)).json();
}

const linkIn = (mail) => new URL(mail.match(/https?:\/\/\S+/)[0]);
const lastCallTo = (end) => report.calls.findLast(({ path }) => path.endsWith(end));

function equal(actual, expected) {
    const [a, e] = [actual, expected].map((value) => JSON.stringify(value));
    if (a !== e) throw new Error(`${a} instead of ${e}`);
}

// The error, as the SDK gives it to its caller.
async function refused(promise, status, errcode) {
    const answer = await promise.then(
        (value) => ({ value }),
        (error) => ({ error }),
    );
    if (!(answer.error instanceof MatrixError)) {
        throw new Error(`${answer.error ?? JSON.stringify(answer.value)} instead of ${errcode}`);
    }
    equal([answer.error.httpStatus, answer.error.errcode], [status, errcode]);
    return answer.error;
}

async function step(name, action) {
    const late = new Promise((_, reject) => {
        setTimeout(() => reject(new Error(`not done after ${STEP_TIMEOUT_MS} ms`)), STEP_TIMEOUT_MS);
    });
    try {
        await Promise.race([action(), late]);
        report.steps.push({ name });
    } catch (error) {
        const cause = error.cause ? `: ${error.cause}` : "";
        report.steps.push({ name, error: `${error}${cause}` });
    }
}

await step("discovery finds an identity server", async () => {
    const config = await AutoDiscovery.fromDiscoveryConfig({
        "m.homeserver": { base_url: location.origin },
        "m.identity_server": { base_url: identityUrl },
    });
    equal(config["m.identity_server"].state, AutoDiscovery.SUCCESS);
});

await step("an OpenID token of the homeserver registers", async () => {
    const registered = await alice.registerWithIdentityServer(await alice.getOpenIdToken());
    equal(registered.access_token, registered.token);
    token = registered.token;
    bobsToken = (await bob.registerWithIdentityServer(await bob.getOpenIdToken())).token;
});

await step("an OpenID token that the homeserver does not know is 401 M_UNAUTHORIZED", async () => {
    const openid = { ...(await alice.getOpenIdToken()), access_token: "wrong" };
    await refused(alice.registerWithIdentityServer(openid), 401, "M_UNAUTHORIZED");
});

await step("before the terms are accepted: 403 M_TERMS_NOT_SIGNED", async () => {
    await refused(alice.getIdentityAccount(token), 403, "M_TERMS_NOT_SIGNED");
    const asked = alice.requestEmailToken(ADDRESS, secret, 1, undefined, token);
    await refused(asked, 403, "M_TERMS_NOT_SIGNED");
});

await step("terms are read without a token and accepted with one", async () => {
    const { policies } = await alice.getTerms(SERVICE_TYPES.IS, identityUrl);
    const urls = Object.values(policies).map((policy) => policy.en.url);
    equal(urls.length, 2);
    for (const accessToken of [token, bobsToken]) {
        await alice.agreeToTerms(SERVICE_TYPES.IS, identityUrl, accessToken, urls);
    }
    equal(await alice.getIdentityAccount(token), { user_id: alice.getUserId() });
});

await step("a mail is asked for with send_attempt as text, and once for each attempt", async () => {
    const ask = (attempt) => alice.requestEmailToken(ADDRESS, secret, attempt, undefined, token);
    ({ sid } = await ask(1));
    equal(JSON.parse(lastCallTo("/requestToken").body).send_attempt, "1");
    equal(await ask(1), { sid });
    equal((await mailsTo(ADDRESS)).length, 1);
    equal(await ask(2), { sid });
    equal((await mailsTo(ADDRESS)).length, 2);
});

await step("a wrong token is 400 M_TOKEN_INCORRECT, and binding is too early", async () => {
    const session = { sid, client_secret: secret };
    const submitted = call(Method.Post, "/validate/email/submitToken", { ...session, token: "wrong" });
    await refused(submitted, 400, "M_TOKEN_INCORRECT");
    const bound = call(Method.Post, "/3pid/bind", { ...session, mxid: alice.getUserId() });
    await refused(bound, 400, "M_SESSION_NOT_VALIDATED");
});

await step("the token from the mail validates", async () => {
    const mails = await mailsTo(ADDRESS);
    const mailed = linkIn(mails.at(-1)).searchParams.get("token");
    const session = { sid, client_secret: secret };
    const submitted = await call(Method.Post, "/validate/email/submitToken", { ...session, token: mailed });
    equal(submitted, { success: true });
    const validated = await call(Method.Get, "/3pid/getValidated3pid", session);
    equal([validated.medium, validated.address], ["email", ADDRESS]);
});

await step("bind", async () => {
    const session = { sid, client_secret: secret };
    const bound = await call(Method.Post, "/3pid/bind", { ...session, mxid: alice.getUserId() });
    equal([bound.medium, bound.address, bound.mxid], ["email", ADDRESS, alice.getUserId()]);
});

await step("identityHashedLookup, lookupThreePid and bulkLookupThreePids find it", async () => {
    const mxid = alice.getUserId();
    equal(await bob.identityHashedLookup([[ADDRESS, "email"]], bobsToken), [{ address: ADDRESS, mxid }]);
    const typed = "Alice@Example.org";
    const found = await bob.lookupThreePid("email", typed, bobsToken);
    equal(found, { address: typed, medium: "email", mxid });
    const book = ["nobody@example.org", ADDRESS, "noone@example.org"].map((address) => ["email", address]);
    equal(await bob.bulkLookupThreePids(book, bobsToken), { threepids: [["email", ADDRESS, mxid]] });
});

await step("a pepper that is not the current one is 400 M_INVALID_PEPPER", async () => {
    const asked = { addresses: ["x"], algorithm: "sha256", pepper: "old" };
    const error = await refused(call(Method.Post, "/lookup", asked), 400, "M_INVALID_PEPPER");
    const { lookup_pepper: pepper } = await alice.getIdentityHashDetails(token);
    equal(error.data.lookup_pepper, pepper);
});

function storeInvite(address) {
    const invite = {
        medium: "email",
        address,
        room_id: ROOM,
        sender: alice.getUserId(),
        room_name: "Garden",
        sender_display_name: "Alice",
        room_alias: "",
        room_avatar_url: "",
        room_join_rules: "invite",
    };
    return call(Method.Post, "/store-invite", invite);
}

await step("an address that is bound is not invited: 400 M_THREEPID_IN_USE", async () => {
    const error = await refused(storeInvite(ADDRESS), 400, "M_THREEPID_IN_USE");
    equal(error.data.mxid, alice.getUserId());
});

await step("store-invite mails, and its keys are valid", async () => {
    const invite = await storeInvite(BOBS_ADDRESS);
    equal(invite.display_name.includes(BOBS_ADDRESS), false);
    for (const { key_validity_url: url, public_key: key } of invite.public_keys) {
        const asked = `${url}?public_key=${encodeURIComponent(key)}`;
        equal(await alice.http.requestOtherUrl(Method.Get, asked), { valid: true });
    }
    const { token: stateKey, ...content } = invite;
    await alice.sendStateEvent(ROOM, "m.room.third_party_invite", content, stateKey);
});

// The link leads to a web client, behind whose "#" are the room and what is to be called.
async function inviteSignUrl() {
    const mails = await mailsTo(BOBS_ADDRESS);
    const inClient = new URL(linkIn(mails.at(-1)).hash.slice(1), location.origin);
    equal(decodeURIComponent(inClient.pathname), `/room/${ROOM}`);
    return new URL(inClient.searchParams.get("signurl"));
}

await step("joinRoom with an inviteSignUrl that was tampered with is refused", async () => {
    const unknown = await inviteSignUrl();
    unknown.searchParams.set("token", "unknown");
    await refused(bob.joinRoom(ROOM, { inviteSignUrl: unknown.href }), 404, "M_UNRECOGNIZED");
    const wrongKey = await inviteSignUrl();
    wrongKey.searchParams.set("private_key", "A".repeat(43));
    await refused(bob.joinRoom(ROOM, { inviteSignUrl: wrongKey.href }), 400, "M_INVALID_PARAM");
});

await step("joinRoom with the mailed inviteSignUrl gets a signature that lets in", async () => {
    const room = await bob.joinRoom(ROOM, { inviteSignUrl: (await inviteSignUrl()).href });
    equal(room.roomId, ROOM);
    const signed = lastCallTo("/api/v1/sign-ed25519");
    equal([signed.method, signed.body], ["POST", undefined]);
    equal(signed.query.sort(), ["mxid", "private_key", "token"]);
});

await step("unbind, and nobody finds it any more", async () => {
    const threepid = { medium: "email", address: ADDRESS };
    const unbind = (session) =>
        call(Method.Post, "/3pid/unbind", { ...session, mxid: alice.getUserId(), threepid });
    await refused(unbind({ sid, client_secret: "wrong" }), 403, "M_NO_VALID_SESSION");
    equal(await unbind({ sid, client_secret: secret }), {});
    equal(await bob.lookupThreePid("email", ADDRESS, bobsToken), {});
});

await step("errors before any endpoint can be read: 404, 405, 400, 413", async () => {
    await refused(call(Method.Get, "/nowhere"), 404, "M_UNRECOGNIZED");
    await refused(call(Method.Post, "/nowhere", { a: "b" }), 404, "M_UNRECOGNIZED");
    for (const method of [Method.Get, Method.Put, Method.Delete]) {
        await refused(call(method, "/lookup"), 405, "M_UNRECOGNIZED");
    }
    const url = `${identityUrl}${IdentityPrefix.V2}/lookup`;
    const headers = { Authorization: `Bearer ${token}` };
    const post = (body) => alice.http.requestOtherUrl(Method.Post, url, body, { headers });
    await refused(post("{"), 400, "M_NOT_JSON");
    await refused(post("x".repeat(2 << 20)), 413, "M_TOO_LARGE");
});

await step("a wrong access token is 401 M_UNAUTHORIZED", async () => {
    await refused(alice.getIdentityAccount("wrong"), 401, "M_UNAUTHORIZED");
    await refused(alice.getIdentityHashDetails("wrong"), 401, "M_UNAUTHORIZED");
});

await step("too many mails are 429 M_LIMIT_EXCEEDED, with the time to wait", async () => {
    const ask = (attempt) => bob.requestEmailToken("busy@example.org", secret, attempt, undefined, bobsToken);
    for (const attempt of [1, 2, 3, 4, 5]) await ask(attempt);
    const error = await refused(ask(6), 429, "M_LIMIT_EXCEEDED");
    equal([error.isRateLimitError(), error.getRetryAfterMs() > 0], [true, true]);
    equal((await mailsTo("busy@example.org")).length, 5);
});

await step("a lookup after the five seconds for which browsers keep a preflight by themselves", async () => {
    await new Promise((resolve) => setTimeout(resolve, 6_000));
    equal(await bob.lookupThreePid("email", ADDRESS, bobsToken), {});
});

await step("logout ends the token", async () => {
    equal(await call(Method.Post, "/account/logout", {}), {});
    await refused(alice.getIdentityAccount(token), 401, "M_UNAUTHORIZED");
});

report.finished = true;
