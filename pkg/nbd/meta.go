package nbd

import (
	"context"
	"encoding/binary"
	"strconv"
	"strings"
)

// SessionQuery begins the query by which our client names its session: "vmdk:session:ID:EPOCH". It selects no context.
const sessionQuery = "vmdk:session:"

type selected struct {
	id uint32
	Context
}

// MetaContext answers LIST and SET (proto.md, "Metadata querying").
func (c *conn) metaContext(ctx context.Context, o option) error {
	set := o.code == optSetMeta
	if set {
		c.contexts = nil // also where this one fails
	}
	if !c.structured {
		return c.refuse(o.code, repErrInvalid, "structured replies come first")
	}
	name, queries, ok := parseMeta(o.data)
	if !ok {
		return c.refuse(o.code, repErrInvalid, "the option's data is not what it says")
	}
	e, err := c.resolve(ctx, name)
	if err != nil {
		return c.refuse(o.code, repOf(err), err.Error())
	}
	for _, q := range queries {
		if id, epoch, ok := parseSession(q); ok && set {
			if err := c.s.enterSession(ctx, c, id, epoch); err != nil {
				return c.refuse(o.code, repErrShutdown, err.Error())
			}
		}
	}
	for i, x := range e.allContexts() {
		if !matches(x.Name, queries, set) || len(c.contexts) == maxContexts {
			continue
		}
		id := uint32(0) // in answers to LIST it means nothing
		if set {
			id = uint32(i + 1)
			c.contexts = append(c.contexts, selected{id, x})
		}
		b := binary.BigEndian.AppendUint32(nil, id)
		if err := c.reply(o.code, repMeta, append(b, x.Name...)); err != nil {
			return err
		}
	}
	return c.reply(o.code, repAck, nil)
}

// Matches says whether a query is for the context. LIST has wildcards: no query is for all, "namespace:" for all of one, and what
// ends in a colon for all that begin so; SET takes exact names.
func matches(name string, queries []string, set bool) bool {
	if !set && len(queries) == 0 {
		return true
	}
	for _, q := range queries {
		if q == name || !set && strings.HasSuffix(q, ":") && strings.HasPrefix(name, q) {
			return true
		}
	}
	return false
}

func parseMeta(b []byte) (name string, queries []string, ok bool) {
	p := parser{b: b}
	name = p.str()
	n := p.u32()
	if uint64(n) > uint64(len(p.b))/4 {
		return "", nil, false
	}
	for range n {
		queries = append(queries, p.str())
	}
	return name, queries, p.done()
}

func parseSession(q string) (id string, epoch uint64, ok bool) {
	rest, ok := strings.CutPrefix(q, sessionQuery)
	if !ok {
		return "", 0, false
	}
	id, number, ok := strings.Cut(rest, ":")
	if !ok || len(id) != 32 {
		return "", 0, false
	}
	epoch, err := strconv.ParseUint(number, 10, 63)
	return id, epoch, err == nil
}
