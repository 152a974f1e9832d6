"""The script of a test: the store of the page receives the events of a conversation in random orders."""

#: Alice's browser in front of a simulated cluster. The cluster applies events in one order. The page receives the
#: results (the list, pages, the stream, the answers to its own messages) in any order that the API allows. In the end
#: the page must show the state of the cluster.
STORY = """
async ({ base, seed }) => {
    const { Store } = await import(`${base}/store.js`);
    let state = seed;
    const random = (below) => {
        state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9) >>> 0;
        return Math.floor((state / 2 ** 32) * below);
    };
    const copy = (value) => JSON.parse(JSON.stringify(value));

    // The cluster.
    let revision = 10;
    const truth = { messages: [], delivered: { alice: 0, bob: 0 }, read: { alice: 0, bob: 0 }, bobIsGone: false };
    const events = [];
    const happen = (event) => events.push({ revision, ...copy(event) });
    const write = (sender) => {
        if (truth.bobIsGone) return null;
        revision += 1;
        const seq = truth.messages.length + 1;
        const message = {
            messageId: String(revision), conversationId: "5", seq: String(seq), sender, body: `text ${seq}`,
            timeMs: String(1000 * revision), clientMessageId: `id ${seq}`,
        };
        truth.messages.push(message);
        const told = sender === "alice" ? message : { ...message, clientMessageId: undefined };
        happen({ message: { message: told, members: ["alice", "bob"] } });
        return message;
    };
    const receipt = (member) => {
        const [deliveredSeq, readSeq] = [String(truth.delivered[member]), String(truth.read[member])];
        happen({ receipt: { conversationId: "5", member, deliveredSeq, readSeq } });
    };
    const mark = (kind, member) => {
        const last = truth.messages.length;
        if (truth[kind][member] >= last || (member === "bob" && truth.bobIsGone)) return;
        revision += 1;
        truth[kind][member] += 1 + random(last - truth[kind][member]);
        truth.delivered[member] = Math.max(truth.delivered[member], truth.read[member]);
        receipt(member);
    };
    const remove = (forEveryone) => {
        const fits = (message) => (forEveryone ? !message.deleted && message.sender === "bob" : !message.hidden);
        const some = truth.messages.filter((message) => fits(message) && random(4) === 0).slice(0, 3);
        if (!some.length) return;
        revision += 1;
        const change = forEveryone ? { deleted: true, body: "" } : { hidden: true };
        for (const message of some) Object.assign(message, change);
        happen({ deletion: { conversationId: "5", seqs: some.map((message) => message.seq), forEveryone } });
    };
    const leave = () => {
        revision += 1;
        truth.bobIsGone = true;
        const bobs = truth.messages.filter((message) => message.sender === "bob");
        for (const message of bobs) Object.assign(message, { deleted: true, body: "" });
        happen({ accountDeleted: { conversationId: "5", member: "bob" } });
    };
    const visible = () => truth.messages.filter((message) => !message.hidden);
    const isUnread = (message) => {
        return message.sender === "bob" && !message.deleted && Number(message.seq) > truth.read.alice;
    };
    const unread = () => visible().filter(isUnread).length;
    const members = () => ["alice", "bob"].map((name) => ({
        username: name, deleted: name === "bob" && truth.bobIsGone,
        deliveredSeq: String(truth.delivered[name]), readSeq: String(truth.read[name]),
    }));
    const common = () => ({
        conversationId: "5", unreadCount: String(unread()), lastSeq: String(truth.messages.length),
        members: members(), header: { revision: String(revision) },
    });
    const page = (before, limit) => {
        const all = visible().filter((message) => !before || Number(message.seq) < before).reverse();
        return copy({ ...common(), messages: all.slice(0, limit), hasMore: all.length > limit });
    };
    const row = () => copy({ ...common(), username: "bob", deleted: truth.bobIsGone, lastMessage: visible().at(-1) });

    for (let count = random(30); count > 0; count -= 1) write(random(2) ? "alice" : "bob");
    if (random(2)) mark("read", "alice");
    if (random(2)) mark("read", "bob");

    // The page. Answers in flight arrive later in any order, and stream events arrive in their own order.
    const store = new Store("alice");
    const stale = new Set();
    store.on("stale", (conversation) => stale.add(conversation));
    const first = row();
    let heard = events.length;
    if (truth.messages.length) store.row(first, revision);
    const conversation = store.with("bob");
    const underWay = [];
    let [lagging, isQuiet] = [page(0, 10), false];
    let told = revision;
    const hear = () => {
        if (heard === events.length) return;
        store.apply(events[heard]);
        told = events[heard].revision;
        heard += 1;
    };
    const checkOrder = () => {
        const seqs = conversation.messages.map((message) => message.seq);
        for (let at = 1; at < seqs.length; at += 1) {
            if (seqs[at] <= seqs[at - 1]) throw new Error(`the order is ${seqs}`);
        }
        if (conversation.unread < 0) throw new Error("less than nothing is unread");
    };
    const open = () => {
        if (conversation.loaded || conversation.early) return;
        conversation.early = [];
        const since = told;
        // Without a quorum, a lagging node may answer.
        const answer = isQuiet || random(3) ? page(0, 10) : lagging;
        underWay.push(() => store.page(conversation, answer, 0, since));
    };
    const older = () => {
        const before = conversation.floor;
        if (!conversation.loaded || !conversation.hasOlder) return;
        const since = told;
        const header = { revision: String(since - 1) };
        const answer = isQuiet || random(6) ? page(before, 10) : copy({ ...page(before, 10), header });
        underWay.push(() => store.page(conversation, answer, before, since));
    };
    const refresh = () => {
        if (!stale.size) return;
        const answer = page(0, 1);
        underWay.push(() => store.refresh(conversation, answer));
    };
    const steps = [
        () => write("bob"), () => write("bob"),
        () => {
            const message = copy(write("alice"));
            if (!message) return;
            underWay.push(() => store.sent(conversation, message, `text ${message.seq}`, message.clientMessageId));
        },
        () => mark("delivered", "bob"), () => mark("read", "bob"),
        // After these, the page requests the counters, which would hide a wrong count.
        ...(random(2) ? [] : [
            () => mark("read", "alice"), () => remove(true), () => remove(false),
            () => random(20) === 0 && !truth.bobIsGone && truth.messages.length && leave(),
        ]),
        hear, hear, hear, hear, open, older, older, refresh, refresh,
        () => random(5) === 0 && conversation.trim(15),
        () => { lagging = page(0, 10); },
        () => {
            // The person has seen some of the messages, or the end.
            if (!conversation.id || conversation.lastSeq <= truth.read.alice) return;
            const end = conversation.lastSeq;
            const seq = random(2) ? end : truth.read.alice + 1 + random(end - truth.read.alice);
            store.read(conversation, seq);
            revision += 1;
            truth.read.alice = Math.max(truth.read.alice, seq);
            truth.delivered.alice = Math.max(truth.delivered.alice, seq);
            receipt("alice");
            const marked = revision;
            // The count may be slightly newer.
            if (random(2)) write("bob");
            const answer = { readSeq: String(seq), unreadCount: String(unread()), revision: String(marked) };
            underWay.push(() => store.marked(conversation, answer));
        },
        () => underWay.length && underWay.splice(random(underWay.length), 1)[0](),
        () => underWay.length && underWay.splice(random(underWay.length), 1)[0](),
    ];
    for (let step = 0; step < 150; step += 1) {
        steps[random(steps.length)]();
        checkOrder();
    }

    // Nothing changes any more. All events arrive, inexact counters are requested, and everything is loaded.
    while (heard < events.length || underWay.length) {
        if (underWay.length && random(2)) underWay.splice(random(underWay.length), 1)[0]();
        else hear();
    }
    if (!truth.messages.length) return null;
    isQuiet = true;
    open();
    for (const load of underWay.splice(0)) load();
    while (conversation.hasOlder) {
        older();
        for (const load of underWay.splice(0)) load();
    }
    for (let tries = 0; conversation.stale && tries < 3; tries += 1) store.refresh(conversation, page(0, 1));
    checkOrder();
    const bob = conversation.members.get("bob");
    const shown = (message) => [message.seq, message.sender, message.body, message.deleted ?? false].join(" ");
    const seen = {
        messages: conversation.messages.map(shown), last: conversation.last && shown(conversation.last),
        unread: conversation.unread, lastSeq: conversation.lastSeq,
        read: bob.read, delivered: bob.delivered, gone: conversation.deleted, stale: conversation.stale,
    };
    const is = {
        messages: visible().map(shown), last: visible().length ? shown(visible().at(-1)) : null,
        unread: unread(), lastSeq: truth.messages.length,
        read: truth.read.bob, delivered: truth.delivered.bob, gone: truth.bobIsGone, stale: false,
    };
    return JSON.stringify(seen) === JSON.stringify(is) ? null : { seen, is };
}
"""
