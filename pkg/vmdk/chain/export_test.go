package chain

// SetPiece changes how much a merge copies at once, and how often it commits, until restore is called: with the real sizes
// a small disk is merged in one piece.
func SetPiece(piece, commit int64) (restore func()) {
	p, c := pieceBytes, commitEvery
	pieceBytes, commitEvery = piece, commit
	return func() { pieceBytes, commitEvery = p, c }
}
