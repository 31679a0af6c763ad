//! Links of all documents, and the table of contents for mdBook.
