package hold

import (
	"sync"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

// persons keep the deletion of all that is somebody's apart from what adds to it. Safe for concurrent use.
type persons struct {
	mu   sync.Mutex
	held map[syntax.DID]*person
}

type person struct {
	lock sync.RWMutex // read: something of theirs is being added; written: all of it is being deleted
	refs int
}

// adding waits for the end of a deletion; none begins before done.
func (p *persons) adding(did syntax.DID) (done func()) {
	one, leave := p.enter(did)
	one.lock.RLock()
	return func() { one.lock.RUnlock(); leave() }
}

// deleting waits for what is being added; nothing more is before done.
func (p *persons) deleting(did syntax.DID) (done func()) {
	one, leave := p.enter(did)
	one.lock.Lock()
	return func() { one.lock.Unlock(); leave() }
}

func (p *persons) enter(did syntax.DID) (one *person, leave func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = map[syntax.DID]*person{}
	}
	if one = p.held[did]; one == nil {
		one = &person{}
		p.held[did] = one
	}
	one.refs++
	return one, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if one.refs--; one.refs == 0 {
			delete(p.held, did)
		}
	}
}
