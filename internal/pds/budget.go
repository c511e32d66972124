package pds

import (
	"context"
	"sync"
	"time"
)

// maxGathering is the longest that a commit waits for others to share it.
const maxGathering = 5 * time.Second

// Budget is how many events consumers read of this host; 0 means any number.
type Budget struct {
	Hour, Day int
}

// RelayBudget is what a public relay reads of a new host.
//
// Source: limits of the reference relay for hosts that it does not know.
var RelayBudget = Budget{Hour: 2600, Day: 21_000}

// spending counts the events of the last day by minutes.
type spending struct {
	budget Budget

	mu      sync.Mutex
	minutes [24 * 60]int
	newest  int64 // the minute that was counted last, since 1970
}

// load takes up what an earlier process published.
func (s *spending) load(ctx context.Context, q queryer, now time.Time) error {
	s.newest = now.Unix() / 60
	if s.budget == (Budget{}) {
		return nil
	}
	rows, err := q.QueryContext(ctx, `SELECT time / 60000, count(*) FROM event WHERE seq > ? GROUP BY time / 60000`, now.Add(-24*time.Hour).UnixMicro())
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var minute int64
		var n int
		if err := rows.Scan(&minute, &n); err != nil {
			return err
		}
		if minute > s.newest-int64(len(s.minutes)) && minute <= s.newest {
			s.minutes[minute%int64(len(s.minutes))] = n
		}
	}
	return rows.Err()
}

// turn empties the minutes that passed since the last count.
func (s *spending) turn(now time.Time) {
	minute, size := now.Unix()/60, int64(len(s.minutes))
	for passed := min(minute-s.newest, size); passed > 0; passed-- {
		s.newest++
		s.minutes[s.newest%size] = 0
	}
	s.newest = max(s.newest, minute)
}

func (s *spending) add(n int, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn(now)
	s.minutes[s.newest%int64(len(s.minutes))] += n
}

// window is how long a commit should wait for others: nothing while half of the budget is left, then
// longer, up to maxGathering when it is used up.
func (s *spending) window(now time.Time) time.Duration {
	if s.budget == (Budget{}) {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn(now)
	hour, day, size := 0, 0, int64(len(s.minutes))
	for i := range size {
		n := s.minutes[(s.newest-i+size)%size]
		if day += n; i < 60 {
			hour += n
		}
	}
	used := max(share(hour, s.budget.Hour), share(day, s.budget.Day))
	return time.Duration(min(1, max(0, 2*used-1)) * float64(maxGathering))
}

func share(n, of int) float64 {
	if of == 0 {
		return 0
	}
	return float64(n) / float64(of)
}

// gather waits for others to come, as long as the budget asks for it, or until ctx ends.
func (r *Repo) gather(ctx context.Context) {
	window := r.host.spending.window(r.host.now())
	if window == 0 {
		return
	}
	timer := time.NewTimer(window)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
