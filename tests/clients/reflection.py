#!/usr/bin/env python3
"""Everything that the API can do, by a stock gRPC client that knows nothing but the server's reflection.

No generated code, no proto files: services, methods and messages are what the nodes say they are. Each call goes to
another node than the one before. Needs grpcio, grpcio-reflection and protobuf. Run by tests/clients/run, or by hand:

    reflection.py DATA/cluster.json        against the cluster of `chatd local --data DATA`
    reflection.py HOST:PORT...             against these nodes
"""

import itertools
import json
import sys
import uuid

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

DEADLINE_S = 30
CHAT = "chat.v1.ChatService"
CLUSTER = "chat.v1.ClusterService"
HEALTH = "grpc.health.v1.Health"
OURS = {CHAT, CLUSTER, HEALTH}
PASSWORD = "correct horse"


def expect(what, actual, wanted):
    if actual != wanted:
        raise AssertionError(f"{what}: {actual!r}, not {wanted!r}")


class Node:
    """A node, as its reflection describes it."""

    def __init__(self, address):
        self.address = address
        self.channel = grpc.insecure_channel(address)
        grpc.channel_ready_future(self.channel).result(timeout=DEADLINE_S)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = DescriptorPool(self.database)
        self.methods = {}
        for service in sorted(OURS):
            for method in self.pool.FindServiceByName(service).methods:
                self.methods[f"{service}/{method.name}"] = method

    def message(self, name):
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(name))

    def call(self, name, token=None, **fields):
        """The answer to a call; for a stream, the call itself."""
        method = self.methods[name]
        request = message_factory.GetMessageClass(method.input_type)
        answer = message_factory.GetMessageClass(method.output_type)
        make = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        stub = make(f"/{name}", request_serializer=request.SerializeToString, response_deserializer=answer.FromString)
        metadata = [("authorization", f"Bearer {token}")] if token else []
        return stub(json_format.ParseDict(fields, request()), metadata=metadata, timeout=DEADLINE_S)

    def refusal(self, name, token=None, **fields):
        """Code, reason and field of a call that has to be refused, from the standard error details."""
        try:
            self.call(name, token, **fields)
        except grpc.RpcError as error:
            trailers = dict(error.trailing_metadata())
            status = self.message("google.rpc.Status").FromString(trailers["grpc-status-details-bin"])
            reason, field = None, None
            for detail in status.details:
                value = self.message(detail.TypeName()).FromString(detail.value)
                if detail.TypeName() == "google.rpc.ErrorInfo":
                    expect("the domain", value.domain, "quorum-chat")
                    reason = value.reason
                elif detail.TypeName() == "google.rpc.BadRequest":
                    field = value.field_violations[0].field
            return error.code().name, reason, field
        raise AssertionError(f"{name} should be refused")


def services(node, version):
    """The services that a version of the reflection service lists. Both versions have the same messages."""
    stub = node.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(iter(stub(iter([request]), timeout=DEADLINE_S)))
    return {service.name for service in answer.list_services_response.service}


class Cluster:
    """All nodes, asked in turn; remembers what was asked."""

    def __init__(self, addresses):
        self.nodes = [Node(address) for address in addresses]
        self.turn = itertools.cycle(self.nodes)
        self.called = set()

    def call(self, name, token=None, **fields):
        self.called.add(name)
        return next(self.turn).call(name, token, **fields)

    def chat(self, method, token=None, **fields):
        return self.call(f"{CHAT}/{method}", token, **fields)

    def refusal(self, method, token=None, **fields):
        return next(self.turn).refusal(f"{CHAT}/{method}", token, **fields)


def check_reflection(cluster):
    for node in cluster.nodes:
        v1, v1alpha = services(node, "v1"), services(node, "v1alpha")
        expect("services of both versions of the reflection", v1, v1alpha)
        if not OURS <= v1:
            raise AssertionError(f"{node.address} does not list {OURS - v1}")
        inner = {name for name in v1 if name.startswith(("raft.", "log.")) or "Admin" in name}
        expect("services that are not for clients", inner, set())


def wait_until_ready(cluster):
    for node in cluster.nodes:
        watch = node.call(f"{HEALTH}/Watch", service="")
        while json_format.MessageToDict(next(watch)) != {"status": "SERVING"}:
            pass
        watch.cancel()


def check_cluster(cluster):
    leader = cluster.call(f"{CLUSTER}/GetLeader").leader
    names = set()
    for _ in cluster.nodes:
        listed = cluster.call(f"{CLUSTER}/ListNodes")
        expect("nodes", len(listed.nodes), len(cluster.nodes))
        names.add(listed.answered_by)
        expect("a name that the cluster knows", listed.answered_by in {node.name for node in listed.nodes}, True)
        expect("the leader is listed", leader.name in {node.name for node in listed.nodes}, True)
    expect("every node answers", len(names), len(cluster.nodes))


def check_health(cluster):
    for service in ["", CHAT]:
        for _ in cluster.nodes:
            status = cluster.call(f"{HEALTH}/Check", service=service)
            expect(f"health of {service!r}", json_format.MessageToDict(status), {"status": "SERVING"})
        watch = cluster.call(f"{HEALTH}/Watch", service=service)
        expect("watched health", json_format.MessageToDict(next(watch)), {"status": "SERVING"})
        watch.cancel()
    if "grpc.health.v1.Health/List" in cluster.nodes[0].methods:
        cluster.call(f"{HEALTH}/List")


def check_accounts(cluster, names):
    tokens = {}
    for name in names:
        once = {"username": name, "password": PASSWORD, "request_id": str(uuid.uuid4())}
        made = cluster.chat("CreateAccount", **once)
        again = cluster.chat("CreateAccount", **once)
        expect("the repeat", (again.account_id, again.repeated), (made.account_id, True))
        tokens[name] = cluster.chat("Login", username=name, password=PASSWORD).token
    listed = cluster.chat("ListAccounts", tokens[names[0]], query=names[0])
    expect("accounts found", [account.username for account in listed.accounts], [names[0]])
    taken = cluster.refusal("CreateAccount", username=names[0], password=PASSWORD)
    expect("a name that is taken", taken, ("ALREADY_EXISTS", "USERNAME_TAKEN", None))
    bad = cluster.refusal("CreateAccount", username="No!", password=PASSWORD)
    expect("a bad name", bad, ("INVALID_ARGUMENT", "INVALID_FIELD", "username"))
    nobody = cluster.refusal("Login", username="nobody-" + names[0][-8:], password=PASSWORD)
    expect("an unknown user", nobody, ("NOT_FOUND", "USER_UNKNOWN", None))
    expect("no token", cluster.refusal("ListAccounts"), ("UNAUTHENTICATED", "TOKEN_MISSING", None))
    return tokens


def next_event(stream):
    """The next event that is not a heartbeat: those come whenever there is nothing else."""
    return next(event for event in stream if event.WhichOneof("event") != "heartbeat")


def check_messages(cluster, alice, bob, tokens):
    listening = cluster.chat("Subscribe", tokens[bob])
    expect("the first heartbeat", next(listening).WhichOneof("event"), "heartbeat")
    send = {"recipient": bob, "body": "h\u00e9llo", "client_message_id": str(uuid.uuid4())}
    sent = cluster.chat("SendMessage", tokens[alice], **send)
    again = cluster.chat("SendMessage", tokens[alice], **send)
    expect("the repeat", (again.message_id, again.repeated), (sent.message_id, True))
    event = next_event(listening)
    expect("the message", (event.revision, event.message.message.body), (sent.revision, send["body"]))

    receipt = {"conversation_id": str(sent.conversation_id), "up_to_seq": str(sent.seq)}
    cluster.chat("AcknowledgeDelivery", tokens[bob], receipts=[receipt])
    status = cluster.chat("ReadConversation", tokens[alice], partner=bob).messages[0]
    expect("the status", json_format.MessageToDict(status)["status"], "MESSAGE_STATUS_DELIVERED")
    expect("the receipt", next_event(listening).receipt.delivered_seq, sent.seq)
    unread = cluster.chat("ListChatPartners", tokens[bob]).partners[0]
    expect("the partner", (unread.username, unread.unread_count, unread.last_message.body), (alice, 1, send["body"]))
    marked = cluster.chat("MarkRead", tokens[bob], partner=alice)
    expect("what is read", (marked.read_seq, marked.unread_count), (sent.seq, 0))

    for level in [{}, {"linearizable": True}, {"at_least_revision": str(marked.revision)}]:
        page = cluster.chat("ReadConversation", tokens[alice], partner=bob, limit=1, consistency=level)
        expect(f"read with {level}", json_format.MessageToDict(page.messages[0])["status"], "MESSAGE_STATUS_READ")
    local = cluster.chat("ReadConversation", tokens[alice], partner=bob, consistency={"local": True})
    expect("the age of a local read", local.header.HasField("age_ms"), True)

    deleted = cluster.chat("DeleteMessages", tokens[alice], message_ids=[str(sent.message_id), "0"], for_everyone=True)
    expect("deleted and ignored", (deleted.deleted_count, deleted.ignored_count), (1, 1))
    listening.cancel()
    resumed = cluster.chat("Subscribe", tokens[bob], after_revision=str(marked.revision))
    expect("what comes after", list(next_event(resumed).deletion.seqs), [sent.seq])
    resumed.cancel()


def check_sessions(cluster, alice, tokens):
    registration = cluster.chat("GetRegistration")
    expect("who may register", (registration.open, registration.invitation_needed), (True, False))
    other = cluster.chat("Login", username=alice, password=PASSWORD).token
    sessions = cluster.chat("ListSessions", tokens[alice]).sessions
    expect("the caller's session", [session.current for session in sessions].count(True), 1)
    [revoked] = [session.session_id for session in sessions if not session.current]
    cluster.chat("RevokeSession", tokens[alice], session_id=str(revoked))
    expect("a revoked session", cluster.refusal("ListSessions", other), ("UNAUTHENTICATED", "TOKEN_INVALID", None))
    cluster.chat("SetPrivacy", tokens[alice], read_receipts=False)
    privacy = cluster.chat("GetPrivacy", tokens[alice])
    expect("privacy", (privacy.read_receipts, privacy.session_activity), (False, True))
    third = cluster.chat("Login", username=alice, password=PASSWORD).token
    wrong = cluster.refusal("ChangePassword", tokens[alice], password="wrong horse", new_password="battery staple")
    expect("a wrong password", wrong, ("UNAUTHENTICATED", "PASSWORD_WRONG", None))
    changed = cluster.chat("ChangePassword", tokens[alice], password=PASSWORD, new_password="battery staple")
    expect("the other sessions", changed.closed_sessions, 1)
    expect("an ended session", cluster.refusal("ListSessions", third), ("UNAUTHENTICATED", "TOKEN_INVALID", None))


def check_ends(cluster, alice, bob, tokens):
    cluster.chat("Logout", tokens[alice])
    gone = cluster.refusal("ListChatPartners", tokens[alice])
    expect("a closed session", gone, ("UNAUTHENTICATED", "TOKEN_INVALID", None))
    cluster.chat("DeleteAccount", tokens[bob], password=PASSWORD)
    gone = cluster.refusal("Login", username=bob, password=PASSWORD)
    expect("a deleted account", gone, ("NOT_FOUND", "USER_UNKNOWN", None))


def addresses(arguments):
    if len(arguments) == 1 and arguments[0].endswith(".json"):
        with open(arguments[0], encoding="utf-8") as file:
            return [node["grpc"] for node in json.load(file)["nodes"]]
    return arguments


def main(arguments):
    if not arguments:
        sys.exit(__doc__)
    cluster = Cluster(addresses(arguments))
    check_reflection(cluster)
    wait_until_ready(cluster)
    check_cluster(cluster)
    check_health(cluster)
    # New ones each time, so that it can be run again.
    alice, bob = (f"{name}-{uuid.uuid4().hex[:8]}" for name in ["alice", "bob"])
    tokens = check_accounts(cluster, [alice, bob])
    check_messages(cluster, alice, bob, tokens)
    check_sessions(cluster, alice, tokens)
    check_ends(cluster, alice, bob, tokens)
    expect("methods that were not called", set(cluster.nodes[0].methods) - cluster.called, set())
    print(f"{len(cluster.called)} methods on {len(cluster.nodes)} nodes, with nothing but reflection")


if __name__ == "__main__":
    main(sys.argv[1:])
