package chain

// SetPiece changes how much a merge copies at once, and how often it commits, until restore is called: with the real sizes
// a small disk is merged in one piece.
func SetPiece(piece, commit int64) (restore func()) {
	p, c := pieceBytes, commitEvery
	pieceBytes, commitEvery = piece, commit
	return func() { pieceBytes, commitEvery = p, c }
}

// FlushWaits tells that a flush waits for the one that runs, and others can still join it.
func (c *Chain) FlushWaits() bool {
	c.flushMu.Lock()
	defer c.flushMu.Unlock()
	return c.joinable != nil
}
